//! Writes log lines to standard error, which may be slow, full, closed or unread.
//!
//! ```text
//! any thread ──► LogWriter::push ──pending lines──► writer thread ──► standard error
//!                    └─ full: lost                      └─ failed: lost
//! ```
//!
//! A thread that logs only copies its line into a buffer. It must never wait for standard error and
//! never fail because of it; only the writer thread does. Lost lines are counted, and the count is
//! logged at most once a minute once lines can be written again.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Maximum bytes of pending lines: about 3000 requests.
const PENDING: usize = 1 << 20;
/// Buffer capacity that is retained between writes, in bytes.
const RETAINED: usize = 64 << 10;
/// Pause before retrying a non-blocking output that is not ready.
const PAUSE: Duration = Duration::from_millis(10);
/// Minimum time between two warnings about lost lines.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

/// Accepts log lines from any thread; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct LogWriter(Arc<LogQueue>);

#[derive(Debug, Default)]
struct LogQueue {
    queue: Mutex<Queue>,
    /// Signalled when there are lines to write.
    filled: Condvar,
    /// Signalled when all lines are written.
    drained: Condvar,
    lost: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    /// Complete lines that the writer thread has not taken yet.
    pending: Vec<u8>,
    /// Whether the writer thread is writing the lines it has taken.
    writing: bool,
}

impl LogWriter {
    /// Starts the thread that writes lines to `output`.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub(super) fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self(Arc::default());
        let queue = Arc::clone(&writer.0);
        std::thread::Builder::new()
            .name("skald-log".to_owned())
            .spawn(move || queue.write_all(Output::new(output)))?;
        Ok(writer)
    }

    /// Queues a line for the writer thread, or counts it as lost if the queue is full.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.0.queue();
        if queue.pending.len() + line.len() > PENDING {
            self.0.lost.fetch_add(lines_in(line), Ordering::Relaxed);
            return;
        }
        queue.pending.extend_from_slice(line);
        self.0.filled.notify_one();
    }

    /// Returns the number of lost lines.
    pub(super) fn lost(&self) -> usize {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Waits at most `patience` until all lines are written or lost, and returns whether they are.
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
    /// Accepts a complete line; never fails.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogQueue {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes queued lines until the process ends.
    fn write_all(&self, mut output: Output<impl Write>) {
        let mut lines = Vec::new();
        let mut warned: (usize, Option<Instant>) = (0, None);
        loop {
            self.take(&mut lines);
            let written = output.write(&lines);
            let unwritten = lines_in(lines.get(written..).unwrap_or_default());
            let lost = unwritten + self.lost.fetch_add(unwritten, Ordering::Relaxed);
            let (reported, at) = warned;
            let is_due = at.is_none_or(|at| at.elapsed() >= BETWEEN_WARNINGS);
            // If the queue is nearly full, the warning could be lost too.
            if unwritten == 0
                && lost > reported
                && is_due
                && self.queue().pending.len() < PENDING / 2
            {
                warned = (lost, Some(Instant::now()));
                tracing::warn!(lost, "log lines lost");
            }
        }
    }

    /// Waits for lines, and moves them all into `lines`, replacing its content.
    fn take(&self, lines: &mut Vec<u8>) {
        lines.clear();
        lines.shrink_to(RETAINED);
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

/// An output that recovers from partly written lines.
struct Output<W> {
    output: W,
    /// Whether the last line was only partly written.
    is_torn: bool,
}

impl<W: Write> Output<W> {
    fn new(output: W) -> Self {
        let is_torn = false;
        Self { output, is_torn }
    }

    /// Writes lines up to the first failure, and returns the number of bytes written.
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
                // Another process has made the shared pipe or terminal non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
                Err(_) => break,
            }
        }
        written
    }
}

/// Counts the complete lines in `bytes`.
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

    /// An output in which each write accepts a given number of bytes, or fails.
    struct Scripted {
        orders: Receiver<Result<usize, ErrorKind>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Scripted {
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

    fn scripted() -> (
        LogWriter,
        Sender<Result<usize, ErrorKind>>,
        Receiver<Vec<u8>>,
    ) {
        let (order, orders) = channel();
        let (sender, written) = channel();
        let output = Scripted {
            orders,
            written: sender,
        };
        (LogWriter::start(output).unwrap(), order, written)
    }

    #[test]
    fn a_blocked_output_loses_lines_and_never_blocks_the_caller() {
        let (writer, order, written) = scripted();
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
    fn a_failure_loses_its_lines_and_the_next_start_on_a_new_line() {
        let (writer, order, written) = scripted();
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
