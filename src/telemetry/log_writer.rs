//! The way of log lines to standard error, which may be slow, full, closed or not read at all.
//!
//! ```text
//! any thread ──► LogWriter::push ──pending lines──► writer thread ──► standard error
//!                    └─ no room: lost                   └─ failed: lost
//! ```
//!
//! A thread that logs copies its line into memory and goes on. It must never wait for standard error
//! and never fail because of it; only the writer thread does either. What is lost is counted, and
//! logged once a minute at most when lines can be written again.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of lines that may wait to be written: some 3000 requests.
const PENDING: usize = 1 << 20;
/// Bytes that the buffers keep between two writes.
const KEPT: usize = 64 << 10;
/// How long to wait before an output that would block, but must not be waited for, is tried again.
const PAUSE: Duration = Duration::from_millis(10);
/// Shortest time between two warnings of lost lines.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

/// Where log lines are put; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct LogWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is something to write.
    filled: Condvar,
    /// All is written.
    drained: Condvar,
    lost: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines that the writer thread has not taken yet.
    pending: Vec<u8>,
    /// The writer thread has taken lines and is not through with them.
    writing: bool,
}

impl LogWriter {
    /// Starts the thread that writes lines to `output`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self(Arc::default());
        let shared = Arc::clone(&writer.0);
        std::thread::Builder::new()
            .name("skald-log".to_owned())
            .spawn(move || shared.write_all(Output::new(output)))?;
        Ok(writer)
    }

    /// Puts a line where the writer thread finds it, if there is room.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.0.queue();
        if queue.pending.len() + line.len() > PENDING {
            self.0.lost.fetch_add(lines_in(line), Ordering::Relaxed);
            return;
        }
        queue.pending.extend_from_slice(line);
        self.0.filled.notify_one();
    }

    /// Lines that were not written.
    pub(super) fn lost(&self) -> usize {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written or lost, for as long as `patience`; returns whether they
    /// are.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let waiting = |queue: &mut Queue| queue.writing || !queue.pending.is_empty();
        let drained = self
            .0
            .drained
            .wait_timeout_while(self.0.queue(), patience, waiting);
        let (_queue, waited) = drained.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }
}

impl Write for LogWriter {
    /// Takes a whole line, always.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is put in the queue until the process ends.
    fn write_all(&self, mut output: Output<impl Write>) {
        let mut lines = Vec::new();
        let mut warned: (usize, Option<Instant>) = (0, None);
        loop {
            self.take(&mut lines);
            let written = output.write(&lines);
            let unwritten = lines_in(lines.get(written..).unwrap_or_default());
            let lost = unwritten + self.lost.fetch_add(unwritten, Ordering::Relaxed);
            let (told, at) = warned;
            let is_due = at.is_none_or(|at| at.elapsed() >= BETWEEN_WARNINGS);
            // While there is hardly room, the warning would be lost too.
            if unwritten == 0 && lost > told && is_due && self.queue().pending.len() < PENDING / 2 {
                warned = (lost, Some(Instant::now()));
                tracing::warn!(lost, "log lines lost");
            }
        }
    }

    /// Waits for lines and takes them all in place of those in `lines`, which are done with.
    fn take(&self, lines: &mut Vec<u8>) {
        lines.clear();
        lines.shrink_to(KEPT);
        let mut queue = self.queue();
        queue.writing = false;
        if queue.pending.is_empty() {
            self.drained.notify_all();
        }
        let filled = self
            .filled
            .wait_while(queue, |queue| queue.pending.is_empty());
        let mut queue = filled.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut queue.pending, lines);
        queue.writing = true;
    }
}

/// Standard error, as far as it takes lines.
struct Output<W> {
    output: W,
    /// A line was written in part before the output failed.
    is_torn: bool,
}

impl<W: Write> Output<W> {
    fn new(output: W) -> Self {
        let is_torn = false;
        Self { output, is_torn }
    }

    /// Writes lines up to the first failure; returns the number of bytes written.
    fn write(&mut self, lines: &[u8]) -> usize {
        if self.is_torn && self.write_bytes(b"\n") == 0 {
            return 0;
        }
        self.is_torn = false;
        let written = self.write_bytes(lines);
        let end = lines.get(..written).and_then(|written| written.last());
        self.is_torn = end.is_some_and(|&end| end != b'\n');
        written
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.output.write(rest) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                // A parent has made the pipe or terminal that they share non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
                Err(_) => break,
            }
        }
        written
    }
}

/// Lines that end in these bytes.
fn lines_in(bytes: &[u8]) -> usize {
    bytes
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|line| line.ends_with(b"\n"))
        .count()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// An output that does what it is told, write by write: takes so many bytes, or fails.
    struct Told {
        orders: Receiver<Result<usize, ErrorKind>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self.orders.recv().expect("an order")?.min(bytes.len());
            self.written
                .send(bytes[..count].to_vec())
                .expect("a reader");
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn told() -> (
        LogWriter,
        Sender<Result<usize, ErrorKind>>,
        Receiver<Vec<u8>>,
    ) {
        let (order, orders) = channel();
        let (sender, written) = channel();
        let output = Told {
            orders,
            written: sender,
        };
        (LogWriter::start(output).unwrap(), order, written)
    }

    #[test]
    fn an_output_that_takes_nothing_costs_lines_and_no_time() {
        let (writer, order, written) = told();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        writer.push(&line);
        while !writer.0.queue().writing {
            std::thread::yield_now();
        }
        let room = PENDING / line.len();
        for _ in 0..room + 10 {
            writer.push(&line);
        }
        assert_eq!(writer.lost(), 10);
        assert!(!writer.flush(Duration::from_millis(10)));
        for _ in 0..2 {
            order.send(Ok(usize::MAX)).unwrap();
        }
        assert!(writer.flush(PATIENCE));
        let bytes: usize = written.try_iter().map(|bytes| bytes.len()).sum();
        assert_eq!(bytes, (1 + room) * line.len());
        assert_eq!(writer.lost(), 10);
    }

    #[test]
    fn a_failure_loses_its_lines_and_the_next_begin_on_a_line_of_their_own() {
        let (writer, order, written) = told();
        for order_of in [
            Err(ErrorKind::Interrupted),
            Ok(3),
            Err(ErrorKind::StorageFull),
        ] {
            order.send(order_of).unwrap();
        }
        writer.push(b"first line\nsecond line\n");
        assert!(writer.flush(PATIENCE));
        assert_eq!(writer.lost(), 2);
        // The output is still full.
        order.send(Err(ErrorKind::BrokenPipe)).unwrap();
        writer.push(b"third line\n");
        assert!(writer.flush(PATIENCE));
        assert_eq!(writer.lost(), 3);
        for order_of in [Err(ErrorKind::WouldBlock), Ok(1), Ok(2), Ok(100)] {
            order.send(order_of).unwrap();
        }
        writer.push(b"fourth line\n");
        assert!(writer.flush(PATIENCE));
        let all: Vec<u8> = written.try_iter().flatten().collect();
        assert_eq!(String::from_utf8(all).unwrap(), "fir\nfourth line\n");
        assert_eq!(writer.lost(), 3);
    }
}
