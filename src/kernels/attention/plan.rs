//! What a step's attention has to do, worked out once and shared by all layers.
//!
//! A unit is one sequence, one head and one query tile: up to [`QUERY_TILE`] rows that share
//! every key and value they load. Query tiles are aligned to positions, not to the step's first
//! row. Units of about equal cost are grouped into tasks for the pool; how they are grouped has
//! no influence on a result.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, bail};

use crate::kernels::kv::BLOCK_SIZE;

/// Rows that share a loaded key or value. It divides [`POSITION_TILE`](super::POSITION_TILE), so
/// the rows of a query tile see the same number of position tiles.
pub(super) const QUERY_TILE: usize = 16;

/// The least cost of a task (see [`Unit::cost`]): about three microseconds, above the price of
/// handing it to another thread.
const TASK_COST: usize = 1024;
/// About how many tasks to make where there is more to do: enough to keep many threads evenly
/// busy.
const TASKS: usize = 256;

/// A sequence's rows in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceSpan {
    /// Its rows in the step's matrices.
    pub rows: Range<usize>,
    /// The position of the first of them in the sequence's context; the others follow it.
    pub first_position: usize,
    /// The KV blocks of positions `0..`, at least up to the last row's own.
    pub block_table: Vec<u32>,
}

impl SequenceSpan {
    /// Positions visible to its last row.
    pub(super) fn context(&self) -> usize {
        self.first_position + self.rows.len()
    }
}

/// One head's work for up to [`QUERY_TILE`] rows of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub span: usize,
    pub head: usize,
    /// The first row, in the step's matrices.
    pub row: usize,
    pub rows: usize,
    /// The first row's own position.
    pub position: usize,
}

impl Unit {
    /// In units of about 3 ns: computing grows with rows times positions, loading with positions.
    fn cost(&self) -> usize {
        (self.position + self.rows) * (self.rows + 4)
    }
}

/// The attention work of one step.
#[derive(Debug)]
pub struct AttentionPlan {
    spans: Vec<SequenceSpan>,
    rows: usize,
    n_head: usize,
    /// The number of blocks a cache must at least have.
    n_blocks: usize,
    units: Vec<Unit>,
    /// Ranges of `units`.
    tasks: Vec<Range<usize>>,
}

impl AttentionPlan {
    /// Plans attention with `n_head` heads over `rows` rows.
    ///
    /// # Errors
    /// If the spans do not tile `0..rows` in order without gap or overlap, a block table does not
    /// reach its span's last position, or two rows would be written to the same slot.
    pub fn new(spans: &[SequenceSpan], rows: usize, n_head: usize) -> Result<Arc<Self>> {
        let n_blocks = validate(spans, rows)?;
        let units = units(spans, n_head);
        Ok(Arc::new(Self {
            tasks: group(&units),
            spans: spans.to_vec(),
            rows,
            n_head,
            n_blocks,
            units,
        }))
    }

    /// Rows of the step.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Heads it was planned for.
    pub(super) fn n_head(&self) -> usize {
        self.n_head
    }

    pub(super) fn spans(&self) -> &[SequenceSpan] {
        &self.spans
    }

    pub(super) fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// The units of one task, each with the one that is computed after it.
    pub(super) fn task(&self, task: usize) -> impl Iterator<Item = (&Unit, &Unit)> {
        self.tasks[task].clone().map(|i| {
            let unit = &self.units[i];
            (unit, self.units.get(i + 1).unwrap_or(unit))
        })
    }

    /// Checks that a cache of `n_blocks` blocks has every block that the tables name.
    ///
    /// # Errors
    /// Naming the block if it does not.
    pub(in crate::kernels) fn check_blocks(&self, n_blocks: usize) -> Result<()> {
        if self.n_blocks > n_blocks {
            bail!(
                "a block table names block {}, the KV cache has {n_blocks} blocks",
                self.n_blocks - 1
            );
        }
        Ok(())
    }

    /// Where each row's key and value belong: (row, block, slot in the block).
    pub(in crate::kernels) fn written_slots(
        &self,
    ) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        self.spans.iter().flat_map(|span| {
            span.rows.clone().enumerate().map(|(offset, row)| {
                let position = span.first_position + offset;
                let block = span.block_table[position / BLOCK_SIZE];
                (row, block as usize, position % BLOCK_SIZE)
            })
        })
    }
}

/// Checks the spans and counts the blocks a cache must have.
fn validate(spans: &[SequenceSpan], rows: usize) -> Result<usize> {
    let mut next = 0;
    let mut n_blocks = 0;
    let mut written = HashSet::new();
    for (i, span) in spans.iter().enumerate() {
        let SequenceSpan {
            rows: span_rows,
            first_position,
            block_table,
        } = span;
        if span_rows.start != next || span_rows.end <= span_rows.start {
            bail!("span {i} has rows {span_rows:?}, expected at least one row from {next}");
        }
        next = span_rows.end;
        let context = first_position.checked_add(span_rows.len());
        let Some(needed) = context.map(|context| context.div_ceil(BLOCK_SIZE)) else {
            bail!("span {i} begins at position {first_position}, which is out of range");
        };
        let Some(table) = block_table.get(..needed) else {
            bail!(
                "span {i} reaches into {needed} blocks, its block table has {}",
                block_table.len()
            );
        };
        for &block in table {
            n_blocks = n_blocks.max(block as usize + 1);
        }
        for &block in &table[first_position / BLOCK_SIZE..] {
            if !written.insert(block) {
                bail!("span {i} writes to block {block}, which is written to already");
            }
        }
    }
    if next != rows {
        bail!("the spans cover {next} rows, the step has {rows}");
    }
    Ok(n_blocks)
}

/// All units, a head's query tiles next to each other, as they read the same keys and values;
/// the longest first, so that the last tasks to finish are short ones.
fn units(spans: &[SequenceSpan], n_head: usize) -> Vec<Unit> {
    let mut units = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        for head in 0..n_head {
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

/// Cuts the units into tasks of about equal cost.
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
        let plan = AttentionPlan::new(&spans, 317, 3).unwrap();
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
    fn rows_are_written_to_the_slots_of_their_positions() {
        let spans = [span(0..2, 15, &[7, 3]), span(2..3, 0, &[9])];
        let plan = AttentionPlan::new(&spans, 3, 1).unwrap();
        let slots: Vec<_> = plan.written_slots().collect();
        assert_eq!(slots, [(0, 7, 15), (1, 3, 0), (2, 9, 0)]);
    }

    #[test]
    fn bad_spans_are_refused_with_the_reason() {
        let cases: [(&[SequenceSpan], usize, &str); 8] = [
            (&[span(1..2, 0, &[0])], 2, "span 0 has rows 1..2"),
            (&[span(0..0, 0, &[0])], 0, "span 0 has rows 0..0"),
            (
                &[span(0..2, 0, &[0]), span(1..3, 0, &[1])],
                3,
                "span 1 has rows 1..3",
            ),
            (&[span(0..2, 0, &[0])], 3, "cover 2 rows, the step has 3"),
            (
                &[span(0..1, 16, &[0])],
                1,
                "reaches into 2 blocks, its block table has 1",
            ),
            (&[span(0..1, usize::MAX, &[0])], 1, "out of range"),
            (
                &[span(0..1, 3, &[4]), span(1..2, 9, &[4])],
                2,
                "span 1 writes to block 4",
            ),
            (&[], 1, "cover 0 rows, the step has 1"),
        ];
        for (spans, rows, message) in cases {
            let error = AttentionPlan::new(spans, rows, 2).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let plan = AttentionPlan::new(&[span(0..1, 0, &[4])], 1, 2).unwrap();
        assert!(plan.check_blocks(5).is_ok());
        let error = plan.check_blocks(4).unwrap_err().to_string();
        assert!(
            error.contains("names block 4, the KV cache has 4 blocks"),
            "{error}"
        );
    }

    #[test]
    fn little_work_is_one_task_and_much_work_is_many() {
        let small = AttentionPlan::new(&[span(0..1, 10, &[0])], 1, 12).unwrap();
        assert_eq!(small.tasks(), 1);
        let table: Vec<u32> = (0..32).collect();
        let large = AttentionPlan::new(&[span(0..512, 0, &table)], 512, 12).unwrap();
        assert!(large.tasks() > 100, "{}", large.tasks());
    }
}
