//! /proc/PID/task: the threads, and where in the kernel each one is.
//!
//! `syscall` needs CONFIG_HAVE_ARCH_TRACEHOOK and the right to debug the process (PTRACE_MODE_ATTACH, so Yama
//! counts). It is read without stopping the thread: by the time it is known the thread may be elsewhere.

use super::{Name, Pid, Process, Stat, Status};
use crate::{ReadError, scan};

/// Where a thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syscall {
    /// On a processor, or waiting for one.
    Running,
    /// In a system call.
    In {
        /// Its number.
        number: u32,
        /// Its six arguments.
        args: [u64; 6],
        /// The thread's stack pointer.
        stack_pointer: u64,
        /// The thread's program counter.
        program_counter: u64,
    },
    /// Blocked outside of a system call (a page fault).
    Blocked {
        /// The thread's stack pointer.
        stack_pointer: u64,
        /// The thread's program counter.
        program_counter: u64,
    },
}

impl Syscall {
    /// What `text` says.
    pub fn parse(text: &[u8]) -> Option<Syscall> {
        let mut words = scan::words(scan::lines(text).next()?);
        let first = words.next()?;
        if first == b"running" {
            return Some(Syscall::Running);
        }
        let number = scan::signed(first)?;
        let mut hex = || scan::hex(words.next()?.strip_prefix(b"0x")?);
        let Ok(number) = u32::try_from(number) else {
            return Some(Syscall::Blocked { stack_pointer: hex()?, program_counter: hex()? });
        };
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = hex()?;
        }
        Some(Syscall::In { number, args, stack_pointer: hex()?, program_counter: hex()? })
    }

    /// The thread's stack pointer, if it stands still.
    pub fn stack_pointer(&self) -> Option<u64> {
        match *self {
            Syscall::Running => None,
            Syscall::In { stack_pointer, .. } | Syscall::Blocked { stack_pointer, .. } => Some(stack_pointer),
        }
    }
}

/// One thread of a process.
#[derive(Debug)]
pub struct Thread<'p> {
    process: &'p Process,
    tid: Pid,
}

impl Thread<'_> {
    /// Its id.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// `comm`: its name.
    pub fn name(&self) -> Result<Name, ReadError> {
        let text = self.process.text(&self.path("comm"))?;
        Ok(Name::new(text.strip_suffix(b"\n").unwrap_or(&text)))
    }

    /// `stat`: its state, times and faults.
    pub fn stat(&self) -> Result<Stat, ReadError> {
        self.process.parsed(&self.path("stat"), Stat::parse)
    }

    /// `status`: also what it has for itself, as its seccomp mode.
    pub fn status(&self) -> Result<Status, ReadError> {
        self.process.parsed(&self.path("status"), Status::parse)
    }

    /// `syscall`: where it is.
    pub fn syscall(&self) -> Result<Syscall, ReadError> {
        self.process.parsed(&self.path("syscall"), Syscall::parse)
    }

    fn path(&self, file: &str) -> String {
        format!("task/{}/{file}", self.tid)
    }
}

impl Process {
    /// Its threads, by id. One that ends meanwhile answers [`ReadError::Missing`].
    pub fn threads(&self) -> Result<Vec<Thread<'_>>, ReadError> {
        let mut tids = Vec::new();
        let mut take = |name: &[u8]| tids.extend(scan::number(name).and_then(|n| Pid::try_from(n).ok()));
        self.dir.each_entry("task", &mut take).map_err(|error| self.seen(error))?;
        tids.sort_unstable();
        Ok(tids.into_iter().map(|tid| Thread { process: self, tid }).collect())
    }

    /// The stack pointers of those threads that stand still and may be asked, sorted, and whether that is
    /// all threads. None without rights.
    pub fn stack_pointers(&self) -> Result<(Vec<u64>, bool), ReadError> {
        let threads = self.threads()?;
        let asked = threads.iter().filter_map(|thread| thread.syscall().ok()?.stack_pointer());
        let mut pointers: Vec<u64> = asked.collect();
        pointers.sort_unstable();
        let complete = pointers.len() == threads.len();
        Ok((pointers, complete))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    #[test]
    fn where_a_thread_is() {
        assert_eq!(Syscall::parse(b"running\n"), Some(Syscall::Running));
        let blocked = Syscall::Blocked { stack_pointer: 0x7ffc, program_counter: 0x40 };
        assert_eq!(Syscall::parse(b"-1 0x7ffc 0x40\n"), Some(blocked));
        let read = Syscall::parse(b"0 0x3 0x7f 0x20000 0x22 0x0 0x0 0x7ffc8 0x7f1\n").unwrap();
        let args = [3, 0x7f, 0x20000, 0x22, 0, 0];
        let expected = Syscall::In { number: 0, args, stack_pointer: 0x7ffc8, program_counter: 0x7f1 };
        assert_eq!(read, expected);
        for torn in ["", "0 0x3", "-1 0x7ffc", "x", "0 3 4 5 6 7 8 9 10"] {
            assert_eq!(Syscall::parse(torn.as_bytes()), None, "{torn}");
        }
    }

    #[test]
    fn threads_of_a_process() {
        let fake = FakeRoot::new().process(
            7,
            [
                ("status", ""),
                ("task/9/comm", "b\n\n"),
                ("task/9/syscall", "-1 0x90 0x1\n"),
                ("task/7/comm", "a\n"),
                ("task/7/syscall", "-1 0x70 0x1\n"),
                ("task/8/syscall", "running\n"),
            ],
        );
        let process = Process::open(&Root::at(fake.path()).unwrap(), 7).unwrap();
        let threads = process.threads().unwrap();
        assert_eq!(threads.iter().map(Thread::tid).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(threads[2].name().unwrap().as_bytes(), b"b\n");
        assert!(matches!(threads[1].name(), Err(ReadError::Missing { .. })));
        assert_eq!(process.stack_pointers().unwrap(), (vec![0x70, 0x90], false));
    }

    #[test]
    fn own_threads() {
        let process = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
        let threads = process.threads().unwrap();
        assert!(threads.iter().any(|thread| thread.tid() == process.pid()));
        assert!(threads[0].stat().unwrap().start_time > std::time::Duration::ZERO);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = Syscall::parse(&text);
        }
    }
}
