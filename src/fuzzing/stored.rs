//! Session files and KV block files that are damaged, foreign, or intact with arbitrary content.
//!
//! The first byte of an input selects the use of the rest: the content of a history, a complete file, a list
//! of damages (offset, value) to a history and a block, or the names of unrelated files.

use std::fs;
use std::path::Path;

use super::input::{Input, Scratch};
use crate::session::stored_files;

/// Maximum damages to a file.
const DAMAGES: usize = 8;

pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    let scratch = Scratch::new();
    match kind % 4 {
        0 => stored_files::history_of_content(scratch.path(), input.rest()),
        1 => {
            let file = input.rest();
            stored_files::damaged_history(scratch.path(), |path| write(path, file));
            stored_files::damaged_block(scratch.path(), |path| write(path, file));
        }
        2 => {
            let damages = input.take(3 * DAMAGES);
            stored_files::damaged_history(scratch.path(), |path| damage(path, damages));
            stored_files::damaged_block(scratch.path(), |path| damage(path, damages));
        }
        _ => stored_files::foreign_names(scratch.path(), input.rest()),
    }
}

fn write(path: &Path, file: &[u8]) {
    fs::write(path, file).expect("it is written");
}

/// Changes bytes, or truncates the file at the offset for values from 250.
fn damage(path: &Path, damages: &[u8]) {
    let mut file = fs::read(path).expect("it is read");
    for [low, high, value] in damages.as_chunks().0 {
        let at = usize::from(u16::from_le_bytes([*low, *high])) % (file.len() + 1);
        match file.get_mut(at) {
            Some(byte) if *value < 250 => *byte ^= value,
            _ => file.truncate(at),
        }
    }
    write(path, &file);
}
