//! The attention work of a step, planned once and shared by all layers.
//!
//! A unit is one sequence, the query heads of one key and value head, and one query tile: positions
//! that, with these heads, make up to [`QUERY_TILE`] rows, which share every key and value they load.
//! Query tiles are aligned to positions, not to the step's first row. Units of about equal cost are
//! grouped into tasks for the pool; neither grouping affects any result.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;

use super::shape::AttentionShape;
use crate::kernels::kv::{SequenceSpan, StepSpans};

/// Maximum rows that share a loaded key or value: positions times query heads.
pub(super) const QUERY_TILE: usize = 16;

/// Minimum cost of a task (see [`Unit::cost`]): about three microseconds, longer than it takes to
/// hand the task to another thread.
const TASK_COST: usize = 1024;
/// Approximate number of tasks of a long step: enough to keep many threads evenly busy.
const TASKS: usize = 256;

/// The work of query heads of one key and value head, for one query tile of one sequence.
#[derive(Debug, Clone, Copy)]
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
}

impl Unit {
    /// Returns the cost in units of about 3 ns: computation grows with rows times visible positions,
    /// loading with visible positions.
    fn cost(&self, shape: &AttentionShape) -> usize {
        let visible = self.position + self.positions - shape.first_visible(self.position);
        visible * (self.positions * self.heads + 4)
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
        let units = units(self.spans.as_slice(), shape);
        let work = Arc::new(Work {
            tasks: group(&units, shape),
            units,
        });
        known.push((*shape, Arc::clone(&work)));
        work
    }
}

impl Work {
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

/// Returns all units, longest first, so that the last tasks to finish are short. A head's query
/// tiles are adjacent because they read the same keys and values.
fn units(spans: &[SequenceSpan], shape: &AttentionShape) -> Vec<Unit> {
    let group = shape.group();
    let tile_positions = tile_positions(group);
    let mut units = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        for head in (0..shape.heads).step_by(group) {
            let mut end = span.context();
            while end > span.first_position {
                let tile = (end - 1) / tile_positions * tile_positions;
                let position = tile.max(span.first_position);
                // A group of more heads than rows is several units.
                for first in (0..group).step_by(QUERY_TILE) {
                    units.push(Unit {
                        span: i,
                        head: head + first,
                        heads: QUERY_TILE.min(group - first),
                        row: span.rows.start + position - span.first_position,
                        positions: end - position,
                        position,
                    });
                }
                end = position;
            }
        }
    }
    units
}

/// Returns the number of positions in a query tile of `group` query heads: a power of two, so that it
/// divides [`POSITION_TILE`](super::POSITION_TILE) and all rows of a query tile end in the same tile of
/// positions.
fn tile_positions(group: usize) -> usize {
    1 << (QUERY_TILE / group).max(1).ilog2()
}

/// Groups the units into tasks of about equal cost.
fn group(units: &[Unit], shape: &AttentionShape) -> Vec<Range<usize>> {
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
        let unit = plan.work(&global).units[0];
        assert_eq!(unit.cost(&global), 1024 * 20);
        assert_eq!(unit.cost(&sliding), 31 * 20);
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
