//! The attention work of a step, planned once and shared by all layers.
//!
//! A unit is one sequence, one query head and one query tile: up to [`QUERY_TILE`] rows that share
//! every key and value they load. Query tiles are aligned to positions, not to the step's first
//! row. Units of about equal cost are grouped into tasks for the pool; the grouping does not affect
//! any result.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;

use super::shape::AttentionShape;
use crate::kernels::kv::{SequenceSpan, StepSpans};

/// Rows that share a loaded key or value. Divides [`POSITION_TILE`](super::POSITION_TILE), so that
/// all rows of a query tile see the same number of position tiles.
pub(super) const QUERY_TILE: usize = 16;

/// Minimum cost of a task (see [`Unit::cost`]): about three microseconds, longer than it takes to
/// hand the task to another thread.
const TASK_COST: usize = 1024;
/// Approximate number of tasks of a long step: enough to keep many threads evenly busy.
const TASKS: usize = 256;

/// One head's work for up to [`QUERY_TILE`] rows of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub span: usize,
    pub head: usize,
    /// First row in the step's matrices.
    pub row: usize,
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
}

impl Unit {
    /// Returns the cost in units of about 3 ns: computation grows with rows times positions,
    /// loading with positions.
    fn cost(&self) -> usize {
        (self.position + self.rows) * (self.rows + 4)
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
        let units = units(self.spans.as_slice(), shape.heads);
        let work = Arc::new(Work {
            tasks: group(&units),
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
fn units(spans: &[SequenceSpan], heads: usize) -> Vec<Unit> {
    let mut units = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        for head in 0..heads {
            let mut end = span.context();
            while end > span.first_position {
                let tile = (end - 1) / QUERY_TILE * QUERY_TILE;
                let position = tile.max(span.first_position);
                units.push(Unit {
                    span: i,
                    head,
                    row: span.rows.start + position - span.first_position,
                    rows: end - position,
                    position,
                });
                end = position;
            }
        }
    }
    units
}

/// Groups the units into tasks of about equal cost.
fn group(units: &[Unit]) -> Vec<Range<usize>> {
    let total: usize = units.iter().map(Unit::cost).sum();
    let share = (total / TASKS).max(TASK_COST);
    let mut tasks = Vec::new();
    let (mut start, mut cost) = (0, 0);
    for (i, unit) in units.iter().enumerate() {
        cost += unit.cost();
        if cost >= share || i + 1 == units.len() {
            tasks.push(start..i + 1);
            (start, cost) = (i + 1, 0);
        }
    }
    tasks
}

#[cfg(test)]
mod tests {
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
        let plan = plan.work(&AttentionShape::multi_head(3, 8));
        let mut seen = vec![0; 317 * 3];
        for task in 0..plan.tasks() {
            for (unit, _) in plan.task(task) {
                let span = &spans[unit.span];
                assert_eq!(
                    unit.position - span.first_position,
                    unit.row - span.rows.start
                );
                assert!(unit.position % QUERY_TILE + unit.rows <= QUERY_TILE);
                for row in unit.row..unit.row + unit.rows {
                    assert!(span.rows.contains(&row));
                    seen[row * 3 + unit.head] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
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
