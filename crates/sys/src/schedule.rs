//! Being on time: a short while of real-time priority for a thread that reads what will soon be gone.

use crate::call::last_error;
use rustix::io::Errno;

/// A thread that runs as soon as it can; dropping it makes the thread an ordinary one again.
#[derive(Debug)]
pub struct Urgent {
    before: libc::c_int,
    priority: libc::sched_param,
}

impl Urgent {
    /// `sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, 1)` for the calling thread, which from then
    /// on runs before all ordinary ones: it must rest at least as long as it works. Drop it in the same
    /// thread.
    ///
    /// Errors: EPERM without CAP_SYS_NICE, or where the cgroup has no real-time budget (v1).
    #[allow(unsafe_code)]
    pub fn begin() -> Result<Urgent, Errno> {
        // SAFETY: sched_param is a plain integer or several, for which zero is a valid value.
        let mut priority: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: 0 is the calling thread; `priority` is live and writable.
        let before = unsafe {
            libc::sched_getparam(0, &mut priority);
            libc::sched_getscheduler(0)
        };
        let first = libc::sched_param { sched_priority: 1 };
        // SAFETY: 0 is the calling thread; `first` is live.
        let failed =
            unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &first) };
        if before < 0 || failed != 0 {
            return Err(last_error());
        }
        Ok(Urgent { before, priority })
    }
}

impl Drop for Urgent {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: 0 is the calling thread; policy and parameters are those that the kernel told.
        unsafe { libc::sched_setscheduler(0, self.before, &self.priority) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgency_ends_with_its_guard() {
        let policy = || std::fs::read_to_string("/proc/thread-self/sched").ok();
        let line = |text: String| text.lines().find(|l| l.starts_with("policy")).map(str::to_owned);
        let before = policy().and_then(line);
        match Urgent::begin() {
            Ok(urgent) => drop(urgent),
            Err(e) => return assert_eq!(e, Errno::PERM),
        }
        assert_eq!(policy().and_then(line), before);
    }
}
