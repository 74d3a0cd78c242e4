//! Waiting, with an end, for what the kernel may take long to do, or for ever: drop_caches has hung on ZFS, a write to
//! memory.reclaim waits for disks.
//!
//! Invariant: whoever waits is told how it goes every [`TICK`] and gets its turn back once patience is over, whatever
//! the kernel does.

use ebbtide_observe::Bytes;
use std::fs::File;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How a lever is to be gone about.
pub struct Terms<'a> {
    /// Only plan.
    pub dry_run: bool,
    /// For how long the kernel is waited for at a time.
    pub patience: Duration,
    /// Told, now and then, for how long it has gone on and what has come back.
    pub watch: &'a mut dyn FnMut(Duration, Bytes),
}

const TICK: Duration = Duration::from_secs(1);

/// What `work` returns, which runs in a thread of its own; `None` if it takes longer than `patience`, when it goes on
/// alone. `tick` is called every second.
pub(crate) fn patiently<T: Send + 'static>(
    patience: Duration,
    tick: &mut dyn FnMut(Duration),
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = sync_channel(1);
    let began = Instant::now();
    // Nobody listens any more to what comes too late.
    std::thread::spawn(move || sender.send(work()));
    loop {
        let left = patience.saturating_sub(began.elapsed());
        match receiver.recv_timeout(left.min(TICK)) {
            Ok(done) => return Some(done),
            Err(RecvTimeoutError::Timeout) if !left.is_zero() => tick(began.elapsed()),
            Err(_) => return None,
        }
    }
}

/// Writes `text` and a newline to `file` from a process of its own, which goes on when this one ends: a thread in the
/// kernel would keep this process from ending, and be stopped half-way with it. Where there is no /bin/echo this
/// process writes.
pub(crate) fn write_apart(mut file: File, text: &str) -> io::Result<()> {
    let mut echo = Command::new("/bin/echo");
    echo.arg(text).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(Stdio::piped());
    match echo.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            file.write_all(format!("{text}\n").as_bytes())
        }
        Err(error) => Err(error),
    }
}

/// For how long slabs may seem to be done while a grace period of RCU goes by (measured on 6.18: 94 of 111 MB at once, the
/// rest within a second).
pub(crate) const RCU: Duration = Duration::from_millis(300);

/// Reads `figure` until it has not fallen for `still_for`, for seven times as long at most: what a lever returned is not all
/// there at once.
pub(crate) fn settled(still_for: Duration, mut figure: impl FnMut() -> Bytes) -> Bytes {
    const PAUSE: Duration = Duration::from_millis(50);
    let began = Instant::now();
    let (mut last, mut fell) = (figure(), began);
    while fell.elapsed() < still_for && began.elapsed() < still_for * 7 {
        std::thread::sleep(PAUSE);
        let now = figure();
        if now < last.scaled(0.995) {
            fell = Instant::now();
        }
        last = last.min(now);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn patience_ends() {
        assert_eq!(patiently(Duration::from_secs(60), &mut |_| {}, || 7), Some(7));
        let (let_go, wait) = channel::<()>();
        let held = patiently(Duration::from_millis(10), &mut |_| {}, move || wait.recv().is_ok());
        assert_eq!(held, None);
        drop(let_go);
        let panicked: Option<u8> = patiently(Duration::from_secs(60), &mut |_| {}, || panic!("on purpose"));
        assert_eq!(panicked, None);
    }

    #[test]
    fn another_process_writes() {
        let path = tempfile::NamedTempFile::new().unwrap();
        write_apart(File::create(path.path()).unwrap(), "2").unwrap();
        assert_eq!(std::fs::read_to_string(path.path()).unwrap(), "2\n");
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert!(write_apart(full, "2").unwrap_err().to_string().contains("No space"));
    }

    #[test]
    fn a_figure_settles() {
        let mut figures = [9, 5, 3, 3, 4, 3, 3, 3, 3, 3, 3].into_iter();
        assert_eq!(settled(RCU, || Bytes(figures.next().unwrap_or(2) << 20)), Bytes::from_mib(3));
    }
}
