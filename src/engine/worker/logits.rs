//! Reading what a pass gives.

use super::Worker;
use crate::engine::draw::Row;
use crate::engine::sequence::SequenceId;

impl Worker {
    /// Hands a request what the rows of its prompt say of the tokens that follow them.
    pub(super) fn take_prompt_rows(
        &mut self,
        id: SequenceId,
        wanted: &[(usize, u32)],
        rows: Vec<Row>,
    ) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        for (&(index, _), row) in wanted.iter().zip(rows) {
            if let Row::Prompt {
                found: Some(found), ..
            } = row
            {
                active.take_prompt_token(index, found);
            }
        }
    }
}
