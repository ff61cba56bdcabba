//! The mapping from rows of a step to cache slots: checked once per step, used by every layer.

use std::collections::HashSet;
use std::ops::Range;

use candle_core::{Result, bail};

use super::shape::{BLOCK_SIZE, KvPart};

/// A sequence's rows in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceSpan {
    /// Rows in the step's matrices.
    pub rows: Range<usize>,
    /// Position of the first row in the sequence's context; the others follow it.
    pub first_position: usize,
    /// KV blocks of positions `0..`, at least up to the last row's position.
    pub block_table: Vec<u32>,
    /// As `block_table`, for the layers of [`KvPart::Window`]; empty if the cache has none. Blocks
    /// that the rows do not see may be any of the part.
    pub window_table: Vec<u32>,
}

impl SequenceSpan {
    /// Returns the number of positions up to and including the last row's.
    #[must_use]
    pub fn context(&self) -> usize {
        self.first_position + self.rows.len()
    }

    /// Returns the blocks of the layers of a part.
    #[must_use]
    pub fn table(&self, part: KvPart) -> &[u32] {
        match part {
            KvPart::Global => &self.block_table,
            KvPart::Window => &self.window_table,
        }
    }
}

/// The checked spans of a step: they cover its rows without overlap, and no slot is written twice.
#[derive(Debug)]
pub struct StepSpans {
    spans: Vec<SequenceSpan>,
    rows: usize,
    /// Minimum number of blocks of the global layers: one more than the highest block id.
    blocks: usize,
    /// The same of the window layers; `None` if a span has no blocks of theirs.
    window_blocks: Option<usize>,
}

impl StepSpans {
    /// Checks the spans of a step of `rows` rows.
    ///
    /// # Errors
    /// If the spans do not tile `0..rows` in order without gap or overlap, a block table does not
    /// reach its span's last position, or two rows would be written to the same slot.
    pub fn new(spans: Vec<SequenceSpan>, rows: usize) -> Result<Self> {
        validate(&spans, rows)?;
        let has_windows = spans.iter().all(|span| !span.window_table.is_empty());
        let window_blocks = has_windows.then(|| check_tables(&spans, KvPart::Window));
        Ok(Self {
            blocks: check_tables(&spans, KvPart::Global)?,
            window_blocks: window_blocks.transpose()?,
            spans,
            rows,
        })
    }

    /// Returns the number of rows of the step.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the spans in the order of their rows.
    #[must_use]
    pub fn as_slice(&self) -> &[SequenceSpan] {
        &self.spans
    }

    /// Checks that a layer of a part with `blocks` blocks has every block that the tables name.
    ///
    /// # Errors
    /// If a block is out of range; the error names the highest block. If the spans have no table
    /// for the part.
    pub fn check_blocks(&self, part: KvPart, blocks: usize) -> Result<()> {
        let named = match part {
            KvPart::Global => self.blocks,
            KvPart::Window => match self.window_blocks {
                Some(blocks) => blocks,
                None => bail!("a span has no blocks for the window layers of the KV cache"),
            },
        };
        if named > blocks {
            bail!(
                "a block table names block {}, the KV cache has {blocks} blocks",
                named - 1
            );
        }
        Ok(())
    }

    /// Returns the slot of each row's key and value in the layers of a part: (row, block, slot in
    /// the block).
    pub fn written_slots(&self, part: KvPart) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        self.spans.iter().flat_map(move |span| {
            let table = span.table(part);
            span.rows.clone().enumerate().map(move |(offset, row)| {
                let position = span.first_position + offset;
                let block = table[position / BLOCK_SIZE];
                (row, block as usize, position % BLOCK_SIZE)
            })
        })
    }
}

/// Checks that the spans tile the rows.
fn validate(spans: &[SequenceSpan], rows: usize) -> Result<()> {
    let mut next = 0;
    for (i, span) in spans.iter().enumerate() {
        let span_rows = &span.rows;
        if span_rows.start != next || span_rows.end <= span_rows.start {
            bail!("span {i} has rows {span_rows:?}, expected at least one row from {next}");
        }
        next = span_rows.end;
    }
    if next != rows {
        bail!("the spans cover {next} rows, the step has {rows}");
    }
    Ok(())
}

/// Checks the tables of a part, and returns the minimum number of its blocks.
fn check_tables(spans: &[SequenceSpan], part: KvPart) -> Result<usize> {
    let mut blocks = 0;
    let mut written = HashSet::new();
    for (i, span) in spans.iter().enumerate() {
        let first_position = span.first_position;
        let context = first_position.checked_add(span.rows.len());
        let Some(needed) = context.map(|context| context.div_ceil(BLOCK_SIZE)) else {
            bail!("span {i} begins at position {first_position}, which is out of range");
        };
        let table = span.table(part);
        let Some(table) = table.get(..needed) else {
            bail!(
                "span {i} reaches into {needed} blocks, its block table has {}",
                table.len()
            );
        };
        for &block in table {
            blocks = blocks.max(block as usize + 1);
        }
        for &block in &table[first_position / BLOCK_SIZE..] {
            if !written.insert(block) {
                bail!("span {i} writes to block {block}, which is written to already");
            }
        }
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
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
    fn rows_are_written_to_the_slots_of_their_positions() {
        let spans = vec![span(0..2, 15, &[7, 3]), span(2..3, 0, &[9])];
        let spans = StepSpans::new(spans, 3).unwrap();
        let slots: Vec<_> = spans.written_slots(KvPart::Global).collect();
        assert_eq!(slots, [(0, 7, 15), (1, 3, 0), (2, 9, 0)]);
    }

    #[test]
    fn window_layers_have_blocks_of_their_own() {
        let both = |table: &[u32]| SequenceSpan {
            window_table: table.to_vec(),
            ..span(0..2, 31, &[7, 3, 4])
        };
        let spans = StepSpans::new(vec![both(&[0, 0, 1])], 2).unwrap();
        let slots: Vec<_> = spans.written_slots(KvPart::Window).collect();
        assert_eq!(slots, [(0, 0, 15), (1, 1, 0)]);
        assert!(spans.check_blocks(KvPart::Window, 2).is_ok());
        assert!(spans.check_blocks(KvPart::Window, 1).is_err());
        assert!(spans.check_blocks(KvPart::Global, 2).is_err());
        let none = StepSpans::new(vec![both(&[])], 2).unwrap();
        let refused = none.check_blocks(KvPart::Window, 9).unwrap_err();
        assert!(refused.to_string().contains("no blocks for the window"));
        for table in [&[0, 1][..], &[0, 1, 1]] {
            assert!(StepSpans::new(vec![both(table)], 2).is_err());
        }
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
            let error = StepSpans::new(spans.to_vec(), rows)
                .unwrap_err()
                .to_string();
            assert!(error.contains(message), "{error}");
        }
        let spans = StepSpans::new(vec![span(0..1, 0, &[4])], 1).unwrap();
        assert!(spans.check_blocks(KvPart::Global, 5).is_ok());
        let error = spans
            .check_blocks(KvPart::Global, 4)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("names block 4, the KV cache has 4 blocks"),
            "{error}"
        );
    }
}
