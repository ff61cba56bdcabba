//! Reads a fuzzer's bytes as choices, texts and files.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A reader that takes bytes from the front, and zeros once they are exhausted.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    /// Takes a number below `end`, which is at most 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Takes up to `count` bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Takes the bytes up to the next line feed.
    pub fn line(&mut self) -> &'a [u8] {
        let line = self.take(self.0.iter().take_while(|&&byte| byte != b'\n').count());
        self.take(1);
        line
    }

    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// A sequence of numbers determined by a seed.
pub(super) struct Choices(u64);

impl Choices {
    pub fn of(seed: u8) -> Self {
        Self(u64::from(seed) + 1)
    }

    /// Returns the next number, below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        // Knuth's constants for a linear congruential generator.
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// An empty directory, in memory if the system supports that; removed when dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let shared_memory = PathBuf::from("/dev/shm");
        let place = if shared_memory.is_dir() {
            shared_memory
        } else {
            std::env::temp_dir()
        };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = place.join(format!("skald-fuzz-{}-{count}", std::process::id()));
        std::fs::create_dir(&dir).expect("a directory can be made");
        Self(dir)
    }

    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
