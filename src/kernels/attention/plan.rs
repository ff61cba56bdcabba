//! The attention work of a step, planned once and shared by all layers.
//!
//! A unit is one sequence, the query heads of one key and value head, and one query tile: positions
//! that, with these heads, make up to [`QUERY_TILE`] rows, which share every key and value they load.
//! Query tiles are aligned to positions, not to the step's first row. Units of about equal cost are
//! grouped into tasks for the pool; neither grouping affects any result.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;

use super::segments::SEGMENT;
use super::shape::AttentionShape;
use crate::kernels::kv::{SequenceSpan, StepSpans};

/// Maximum rows that share a loaded key or value: positions times query heads.
pub(super) const QUERY_TILE: usize = 16;

/// Head width that [`Unit::cost`] is measured with.
const COST_WIDTH: usize = 64;
/// Minimum cost of a task (see [`Unit::cost`]): about three microseconds, longer than it takes to
/// hand the task to another thread.
const TASK_COST: usize = 1024;
/// Approximate number of tasks of a long step: enough to keep many threads evenly busy.
const TASKS: usize = 256;

/// The work of query heads of one key and value head, for one query tile of one sequence.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub span: usize,
    /// First query head.
    pub head: usize,
    pub heads: usize,
    /// Row of the first position in the step's matrices.
    pub row: usize,
    pub positions: usize,
    /// First position in its sequence.
    pub position: usize,
    /// The segments of positions that the unit reads.
    pub segments: Range<usize>,
    /// Slot of the first row's partial result; `None` for a unit that reads its rows' whole context.
    pub slot: Option<usize>,
}

/// Rows whose segments are units of their own: the heads of one position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merge {
    /// Row in the step's matrices.
    pub row: usize,
    /// First query head.
    pub head: usize,
    pub heads: usize,
    /// Slot of the first head's first segment; those of the other heads follow it.
    pub slot: usize,
    /// Slots from one segment to the next.
    pub stride: usize,
    pub segments: usize,
}

impl Unit {
    /// Returns the positions that the unit reads.
    pub fn range(&self, shape: &AttentionShape) -> Range<usize> {
        let first = shape.first_visible(self.position);
        let context = self.position + self.positions;
        first.max(self.segments.start * SEGMENT)..context.min(self.segments.end * SEGMENT)
    }

    /// Returns the cost in units of about 3 ns: computation grows with rows times positions, loading
    /// with positions.
    fn cost(&self, shape: &AttentionShape) -> usize {
        let heads = self.range(shape).len() * shape.head_width.div_ceil(COST_WIDTH);
        heads * (self.positions * self.heads + 4)
    }
}

/// The attention work of one step, planned for each shape of attention when it is first computed.
#[derive(Debug)]
pub struct AttentionPlan {
    spans: StepSpans,
    /// The work of each shape that has been computed. A model has one or two.
    work: Mutex<Vec<(AttentionShape, Arc<Work>)>>,
}

/// The work of all layers of one shape.
#[derive(Debug)]
pub(super) struct Work {
    units: Vec<Unit>,
    /// Ranges of `units`.
    tasks: Vec<Range<usize>>,
    merges: Vec<Merge>,
    slots: usize,
}

impl AttentionPlan {
    /// Plans attention over `rows` rows. The plan keeps the spans, block tables included, without
    /// copying them.
    ///
    /// # Errors
    /// As [`StepSpans::new`].
    pub fn new(spans: Vec<SequenceSpan>, rows: usize) -> Result<Self> {
        Ok(Self {
            spans: StepSpans::new(spans, rows)?,
            work: Mutex::default(),
        })
    }

    /// Returns the rows of the step and their places in the cache.
    #[must_use]
    pub fn spans(&self) -> &StepSpans {
        &self.spans
    }

    /// Returns the units of work for layers of a shape, which are the same for all of them.
    pub(super) fn work(&self, shape: &AttentionShape) -> Arc<Work> {
        let mut known = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, work)) = known.iter().find(|(of, _)| of == shape) {
            return Arc::clone(work);
        }
        let work = Arc::new(Work::new(self.spans.as_slice(), shape));
        known.push((*shape, Arc::clone(&work)));
        work
    }
}

impl Work {
    /// Plans all units, longest first, so that the last tasks to finish are short. A head's query tiles
    /// are adjacent because they read the same keys and values.
    fn new(spans: &[SequenceSpan], shape: &AttentionShape) -> Self {
        let group = shape.group();
        let tile_positions = tile_positions(group);
        let mut work = Self {
            units: Vec::new(),
            tasks: Vec::new(),
            merges: Vec::new(),
            slots: 0,
        };
        for (i, span) in spans.iter().enumerate() {
            for head in (0..shape.heads).step_by(group) {
                let mut end = span.context();
                while end > span.first_position {
                    let tile = (end - 1) / tile_positions * tile_positions;
                    let position = tile.max(span.first_position);
                    // A group of more heads than rows is several units.
                    for first in (0..group).step_by(QUERY_TILE) {
                        let seen = shape.first_visible(position) / SEGMENT;
                        work.add(Unit {
                            span: i,
                            head: head + first,
                            heads: QUERY_TILE.min(group - first),
                            row: span.rows.start + position - span.first_position,
                            positions: end - position,
                            position,
                            segments: seen..(end - 1) / SEGMENT + 1,
                            slot: None,
                        });
                    }
                    end = position;
                }
            }
        }
        work.tasks = tasks(&work.units, shape);
        work
    }

    /// Adds a unit. Of a single position, every segment is a unit of its own, so that several threads read
    /// a long context.
    fn add(&mut self, unit: Unit) {
        if unit.positions > 1 || unit.segments.len() == 1 {
            self.units.push(unit);
            return;
        }
        self.merges.push(Merge {
            row: unit.row,
            head: unit.head,
            heads: unit.heads,
            slot: self.slots,
            stride: unit.heads,
            segments: unit.segments.len(),
        });
        for segment in unit.segments.clone() {
            self.units.push(Unit {
                segments: segment..segment + 1,
                slot: Some(self.slots),
                ..unit.clone()
            });
            self.slots += unit.heads;
        }
    }

    /// Returns the number of slots for partial results.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Returns the rows whose segments have slots.
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }

    /// Returns the number of tasks.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Returns the units of one task, each paired with the one computed after it.
    pub fn task(&self, task: usize) -> impl Iterator<Item = (&Unit, &Unit)> {
        self.tasks[task].clone().map(|i| {
            let unit = &self.units[i];
            (unit, self.units.get(i + 1).unwrap_or(unit))
        })
    }
}

/// Returns the number of positions in a query tile of `group` query heads: a power of two, so that it
/// divides [`POSITION_TILE`](super::POSITION_TILE) and all rows of a query tile end in the same tile of
/// positions.
fn tile_positions(group: usize) -> usize {
    1 << (QUERY_TILE / group).max(1).ilog2()
}

/// Groups the units into tasks of about equal cost.
fn tasks(units: &[Unit], shape: &AttentionShape) -> Vec<Range<usize>> {
    let total: usize = units.iter().map(|unit| unit.cost(shape)).sum();
    let enough = (total / TASKS).max(TASK_COST);
    let mut tasks = Vec::new();
    let (mut start, mut cost) = (0, 0);
    for (i, unit) in units.iter().enumerate() {
        cost += unit.cost(shape);
        if cost >= enough || i + 1 == units.len() {
            tasks.push(start..i + 1);
            (start, cost) = (i + 1, 0);
        }
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::super::POSITION_TILE;
    use super::*;

    fn span(rows: Range<usize>, first_position: usize, block_table: &[u32]) -> SequenceSpan {
        SequenceSpan {
            rows,
            first_position,
            block_table: block_table.to_vec(),
            window_table: Vec::new(),
        }
    }

    #[test]
    fn every_row_and_head_is_in_exactly_one_unit_of_one_task() {
        let table: Vec<u32> = (0..64).collect();
        let spans = [
            span(0..1, 500, &table[..32]),
            span(1..300, 5, &table[32..52]),
            span(300..317, 3, &table[52..]),
        ];
        let plan = AttentionPlan::new(spans.to_vec(), 317).unwrap();
        for (heads, kv_heads) in [(3, 3), (8, 2), (12, 2), (6, 2), (40, 2), (1, 1)] {
            let shape = AttentionShape {
                kv_heads,
                ..AttentionShape::multi_head(heads, 8)
            };
            let work = plan.work(&shape);
            let mut seen = vec![0; 317 * heads];
            for (unit, _) in (0..work.tasks()).flat_map(|task| work.task(task)) {
                let span = &spans[unit.span];
                assert_eq!(
                    unit.position - span.first_position,
                    unit.row - span.rows.start
                );
                assert!(unit.positions * unit.heads <= QUERY_TILE);
                assert!(unit.position % POSITION_TILE + unit.positions <= POSITION_TILE);
                let last_head = unit.head + unit.heads - 1;
                assert_eq!(unit.head / shape.group(), last_head / shape.group());
                assert_eq!(unit.segments, 0..1);
                for row in unit.row..unit.row + unit.positions {
                    assert!(span.rows.contains(&row));
                    for head in unit.head..=last_head {
                        seen[row * heads + head] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn layers_of_one_shape_share_their_work_and_a_window_costs_less() {
        let table: Vec<u32> = (0..64).collect();
        let plan = AttentionPlan::new(vec![span(0..512, 512, &table)], 512).unwrap();
        let global = AttentionShape::multi_head(4, 8);
        let sliding = AttentionShape {
            window: Some(16),
            ..global
        };
        assert!(Arc::ptr_eq(&plan.work(&global), &plan.work(&global)));
        assert!(!Arc::ptr_eq(&plan.work(&global), &plan.work(&sliding)));
        let unit = &plan.work(&global).units[0];
        assert_eq!(unit.cost(&global), 1024 * 20);
        assert_eq!(unit.cost(&sliding), 31 * 20);
    }

    #[test]
    fn a_single_position_of_a_long_context_is_a_unit_per_segment() {
        let table: Vec<u32> = (0..1024).collect();
        let spans = vec![span(0..1, 9999, &table), span(1..8, 9000, &table)];
        let plan = AttentionPlan::new(spans, 8).unwrap();
        let shape = AttentionShape {
            kv_heads: 2,
            ..AttentionShape::multi_head(6, 8)
        };
        let work = plan.work(&shape);
        let split: Vec<_> = work.units.iter().filter(|u| u.slot.is_some()).collect();
        let ranges: Vec<_> = split.iter().map(|unit| unit.range(&shape)).collect();
        let expected = [0..2048, 2048..4096, 4096..6144, 6144..8192, 8192..10_000];
        assert_eq!(ranges, [expected.clone(), expected].concat());
        let slots: Vec<_> = split.iter().filter_map(|unit| unit.slot).collect();
        assert_eq!(slots, (0..30).step_by(3).collect::<Vec<_>>());
        assert_eq!((work.slots(), work.merges().len()), (30, 2));
        let rest = work.units.iter().filter(|u| u.slot.is_none());
        assert!(rest.into_iter().all(|unit| unit.segments == (0..5)));

        let sliding = AttentionShape {
            window: Some(1000),
            ..shape
        };
        let work = plan.work(&sliding);
        assert_eq!((work.slots(), work.merges().len()), (0, 0));
        let sliding = AttentionShape {
            window: Some(3000),
            ..shape
        };
        assert_eq!(plan.work(&sliding).units[0].range(&sliding), 7000..8192);
    }

    #[test]
    fn little_work_is_one_task_and_much_work_is_many() {
        let shape = AttentionShape::multi_head(12, 8);
        let small = AttentionPlan::new(vec![span(0..1, 10, &[0])], 1).unwrap();
        assert_eq!(small.work(&shape).tasks(), 1);
        let table: Vec<u32> = (0..32).collect();
        let large = AttentionPlan::new(vec![span(0..512, 0, &table)], 512).unwrap();
        let tasks = large.work(&shape).tasks();
        assert!(tasks > 100, "{tasks}");
    }
}
