//! Prints on threads of their own, so that no task of the runtime waits for whoever reads.

mod queue;

use std::{
    io::{self, Write},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use self::queue::{Entry, Queue};

/// A reader that takes nothing for this long does not read.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the end of the program waits for a slow reader.
const MAX_DRAIN: Duration = Duration::from_secs(5);
/// How many bytes are written at a time. A pipe takes this many as soon as a page of it is free, so
/// a slow reader is seen to read.
const CHUNK: usize = 4096;
/// The pause before another try if the output is full and does not block.
const RETRY: Duration = Duration::from_millis(10);

/// The reaction of a printer to a failure of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// The printer prints nothing any more, and [`Printer::failed`] says why.
    Stop,
    /// The printer counts the line as lost, and tries the next one.
    Skip,
}

impl std::fmt::Debug for Printer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Printer").finish_non_exhaustive()
    }
}

/// One output of the program. All methods but [`Self::drain`] may be called on tasks.
pub(crate) struct Printer {
    state: Mutex<State>,
    /// Wakes threads after a change of the state.
    changed: Condvar,
    /// Wakes tasks when the queue has room again, and when the output fails for good.
    freed: Notify,
    on_failure: OnFailure,
    /// Makes the line that says how many are lost.
    report: fn(u64) -> String,
    /// The output whose lines are printed before the lines here, because people see both on one
    /// terminal.
    after: Option<&'static Self>,
    /// How long a reader may take nothing until it is one that does not read.
    patience: Duration,
}

#[derive(Default)]
struct State {
    queue: Queue,
    /// Whether the thread has an entry.
    busy: bool,
    /// How many entries the thread is done with.
    done: u64,
    /// Since when a write has been waiting for the reader.
    waits: Option<Instant>,
    failure: Option<io::Error>,
}

impl Printer {
    pub(crate) fn new(
        on_failure: OnFailure,
        report: fn(u64) -> String,
        after: Option<&'static Self>,
    ) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            freed: Notify::new(),
            on_failure,
            report,
            after,
            patience: PATIENCE,
        }
    }

    /// Starts to print on what `open` returns, which stays locked during each entry.
    pub(crate) fn start<W: Write>(
        self,
        open: impl FnMut() -> W + Send + 'static,
    ) -> io::Result<&'static Self> {
        // The thread may still be writing when the program ends.
        let printer: &'static Self = Box::leak(Box::new(self));
        thread::Builder::new()
            .name("printer".into())
            .spawn(move || printer.run(open))?;
        Ok(printer)
    }

    /// Prints `line`. If it does not fit into the queue, it is lost and counted.
    pub(crate) fn line(&self, line: String) {
        self.change(|state| state.queue.offer(ended(line)));
    }

    /// Prints `line`, whether it fits or not. This is for the few lines for which a command is run.
    pub(crate) fn keep(&self, line: String) {
        self.change(|state| state.queue.keep(ended(line), None));
    }

    /// Prints `line` as soon as it fits. If the reader does not read, the line is lost and counted.
    pub(crate) async fn line_when_read(&self, line: String) {
        loop {
            let freed = self.freed.notified();
            let patience = {
                let state = self.lock();
                let fits = state.queue.has_room(line.len() + 1);
                if fits {
                    Duration::ZERO
                } else {
                    self.patience(&state)
                }
            };
            if patience.is_zero() {
                return self.line(line);
            }
            // Why the wait ended does not matter, because the state is looked at again.
            let _ = tokio::time::timeout(patience, freed).await;
        }
    }

    /// Prints `text` if nothing else waits. A later text says more.
    pub(crate) fn glimpse(&self, text: String) {
        self.change(|state| {
            if state.queue.len() == 0 {
                state.queue.offer(text.into_bytes());
            }
        });
    }

    /// Prints `bytes` as they are. Waits for the reader, however long it takes.
    ///
    /// # Errors
    /// Returns the failure of the output.
    pub(crate) async fn payload(&self, bytes: Vec<u8>) -> io::Result<()> {
        let (sender, written) = oneshot::channel();
        self.change(|state| state.queue.keep(bytes, Some(sender)));
        written.await.map_err(|_| {
            let failure = self.failure();
            failure.unwrap_or_else(|| io::ErrorKind::WriteZero.into())
        })
    }

    /// Waits until the output fails for good.
    pub(crate) async fn failed(&self) -> io::Error {
        loop {
            let freed = self.freed.notified();
            if let Some(failure) = self.failure() {
                return failure;
            }
            freed.await;
        }
    }

    /// Returns why the output has failed for good.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.lock().failure.as_ref().map(copy)
    }

    /// Blocks this thread until everything is written that waits now, or until the reader does not
    /// read or is too slow.
    pub(crate) fn drain(&self) {
        let deadline = Instant::now() + MAX_DRAIN;
        let mut state = self.lock();
        let end = state.done + u64::from(state.busy) + state.queue.len() as u64;
        while state.done < end && state.failure.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.min(self.patience(&state));
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the reader may go on to take nothing. It is zero for a reader that does not read.
    fn patience(&self, state: &State) -> Duration {
        let waited = state.waits.map_or(Duration::ZERO, |since| since.elapsed());
        self.patience.saturating_sub(waited)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        if state.failure.is_some() {
            state.queue = Queue::default();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Prints until the output fails for good.
    fn run<W: Write>(&self, mut open: impl FnMut() -> W) {
        // How many lines were lost since the last report.
        let mut lost = 0;
        loop {
            let entry = self.next();
            // Payload is for programs as a rule, and must not wait for a slow log.
            if entry.written.is_none()
                && let Some(first) = self.after
            {
                first.drain();
            }
            lost += entry.lost;
            let failure = match self.print(&mut open(), &mut lost, &entry.bytes) {
                Ok(()) => {
                    // Nobody waits for a line.
                    let _ = entry.written.map(|written| written.send(()));
                    None
                }
                Err(_) if self.on_failure == OnFailure::Skip => {
                    lost += u64::from(!entry.bytes.is_empty());
                    None
                }
                Err(error) => Some(error),
            };
            let failed = failure.is_some();
            self.change(|state| {
                state.busy = false;
                state.waits = None;
                state.done += 1;
                state.failure = failure;
            });
            if failed {
                return self.freed.notify_waiters();
            }
        }
    }

    /// Waits for the next entry and takes it.
    fn next(&self) -> Entry {
        let mut state = self.lock();
        loop {
            if let Some(entry) = state.queue.pop() {
                state.busy = true;
                if state.queue.is_half_empty() {
                    self.freed.notify_waiters();
                }
                return entry;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Prints an entry, after the report of what was lost before it.
    fn print(&self, output: &mut impl Write, lost: &mut u64, bytes: &[u8]) -> io::Result<()> {
        if *lost > 0 {
            self.write_all(output, &ended((self.report)(*lost)))?;
            *lost = 0;
        }
        self.write_all(output, bytes)
    }

    fn write_all(&self, output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.change(|state| state.waits = Some(Instant::now()));
            let part = &bytes[..bytes.len().min(CHUNK)];
            match until_ready(|| output.write(part))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => bytes = &bytes[written..],
            }
        }
        until_ready(|| output.flush())
    }
}

/// The log writes one line at a time.
impl Write for &Printer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.change(|state| state.queue.offer(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn ended(mut line: String) -> Vec<u8> {
    line.push('\n');
    line.into_bytes()
}

/// Repeats `write` while the output is full, in case another program has made it non-blocking.
fn until_ready<T>(mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, PipeReader, Read as _},
        sync::{Arc, mpsc},
    };

    use super::*;

    /// A patience that shows at once that nobody reads.
    const SHORT: Duration = Duration::from_millis(50);
    /// A patience for a reader that a busy machine slows down.
    const LONG: Duration = Duration::from_secs(30);

    /// A printer of one end of a pipe.
    fn piped(patience: Duration) -> (&'static Printer, PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let mut printer = Printer::new(OnFailure::Stop, report, None);
        printer.patience = patience;
        let printer = printer.start(move || writer.try_clone().unwrap());
        (printer.unwrap(), reader)
    }

    fn report(lost: u64) -> String {
        format!("lost {lost}")
    }

    /// Numbered lines that are longer than the pipe and the queue together.
    fn long_lines() -> impl Iterator<Item = String> {
        (0..20_000).map(|n| format!("{n:0100}"))
    }

    /// Reads the numbered lines, each of which is there or counted as lost. Returns the reports.
    fn reports(reader: PipeReader) -> Vec<u64> {
        let (mut expected, mut reports) = (0, Vec::new());
        let mut lines = BufReader::new(reader).lines();
        while expected < 20_000 {
            let line = lines.next().unwrap().unwrap();
            if let Some(lost) = line.strip_prefix("lost ") {
                let lost = lost.parse().unwrap();
                reports.push(lost);
                expected += lost;
            } else {
                assert_eq!(line, format!("{expected:0100}"));
                expected += 1;
            }
        }
        reports
    }

    #[test]
    fn nobody_waits_for_a_reader_and_the_reader_learns_what_is_lost() {
        let (printer, reader) = piped(LONG);
        long_lines().for_each(|line| printer.line(line));
        let reports = reports(reader);
        assert_eq!(reports.len(), 1, "{reports:?}");
    }

    #[test]
    fn the_end_waits_for_a_reader_but_not_for_nobody() {
        let (printer, reader) = piped(LONG);
        let lines = long_lines().take(10_000);
        lines.for_each(|line| printer.keep(line));
        let read = thread::spawn(move || BufReader::new(reader).lines().take(10_000).count());
        printer.drain();
        assert_eq!(printer.lock().queue.len(), 0);
        assert_eq!(read.join().unwrap(), 10_000);

        let (printer, _reader) = piped(SHORT);
        long_lines().for_each(|line| printer.line(line));
        let start = Instant::now();
        printer.drain();
        assert!(start.elapsed() < MAX_DRAIN, "{:?}", start.elapsed());
        assert!(printer.lock().queue.len() > 0);
    }

    #[tokio::test]
    async fn lines_that_wait_are_lost_only_if_nobody_reads() {
        let (printer, reader) = piped(LONG);
        let read = thread::spawn(move || reports(reader));
        for line in long_lines() {
            printer.line_when_read(line).await;
        }
        assert!(read.join().unwrap().is_empty());

        let (printer, reader) = piped(SHORT);
        for line in long_lines() {
            printer.line_when_read(line).await;
        }
        assert_eq!(reports(reader).len(), 1);
    }

    #[tokio::test]
    async fn payload_is_never_lost_and_learns_that_the_reader_is_gone() {
        let (printer, mut reader) = piped(SHORT);
        let payload = vec![7; 3 * queue::MAX_BYTES];
        let length = payload.len();
        let read = thread::spawn(move || {
            let mut bytes = vec![0; length];
            reader.read_exact(&mut bytes).unwrap();
            bytes
        });
        printer.payload(payload.clone()).await.unwrap();
        assert!(read.join().unwrap() == payload);
        // The reader is gone with its thread.
        let error = printer.payload(payload).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(printer.failed().await.kind(), io::ErrorKind::BrokenPipe);
        printer.keep("to nobody".into());
        printer.drain();
        assert_eq!(printer.lock().queue.len(), 0);
        assert!(printer.payload(vec![1]).await.is_err());
    }

    /// An output that first fails with these errors, and then keeps the bytes that it takes.
    #[derive(Clone)]
    struct Device(Arc<Mutex<(Vec<io::ErrorKind>, Vec<u8>)>>);

    impl Write for Device {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut device = self.0.lock().unwrap();
            match device.0.pop() {
                Some(failure) => Err(failure.into()),
                None => device.1.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Prints the lines 0 to 4, and returns what the device has then.
    fn printed(failures: &[io::ErrorKind]) -> String {
        let device = Device(Arc::new(Mutex::new((failures.to_vec(), Vec::new()))));
        let open = device.clone();
        let printer = Printer::new(OnFailure::Skip, report, None);
        let printer = printer.start(move || open.clone()).unwrap();
        (0..5).for_each(|n| printer.line(n.to_string()));
        printer.drain();
        let device = device.0.lock().unwrap();
        String::from_utf8(device.1.clone()).unwrap()
    }

    #[test]
    fn a_device_that_was_full_says_what_it_did_not_take() {
        use io::ErrorKind::{Interrupted, StorageFull, WouldBlock};
        assert_eq!(printed(&[]), "0\n1\n2\n3\n4\n");
        assert_eq!(printed(&[StorageFull; 3]), "lost 3\n3\n4\n");
        assert_eq!(printed(&[WouldBlock, Interrupted]), "0\n1\n2\n3\n4\n");
    }

    #[test]
    fn lines_of_the_other_output_come_first() {
        let (both, writer) = io::pipe().unwrap();
        let (go, wait) = mpsc::channel();
        let copy = writer.try_clone().unwrap();
        let slow = move || {
            let _ = wait.recv();
            writer.try_clone().unwrap()
        };
        let mut first = Printer::new(OnFailure::Skip, report, None);
        first.patience = LONG;
        let first = first.start(slow).unwrap();
        let second = Printer::new(OnFailure::Stop, report, Some(first));
        let second = second.start(move || copy.try_clone().unwrap()).unwrap();
        first.line("first".into());
        second.keep("second".into());
        while !second.lock().busy && second.lock().done == 0 {
            thread::yield_now();
        }
        go.send(()).unwrap();
        let lines = BufReader::new(both).lines().take(2);
        let lines: Vec<_> = lines.map(Result::unwrap).collect();
        assert_eq!(lines, ["first", "second"]);
    }
}
