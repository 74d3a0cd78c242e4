//! How a process was started, and what it says of itself: cmdline, environ, exe, cwd, oom_score_adj, ns.
//!
//! The command line and the environment lie in the process's own memory: it may overwrite them
//! (setproctitle), and reading them may fault swapped pages back in.

use super::Process;
use crate::{ReadError, scan};
use rustix::io::Errno;

/// The most [`Process::cmdline`] reads.
pub const MAX_CMDLINE: usize = 4096;

impl Process {
    /// `cmdline`: the arguments, each ended by NUL; the first [`MAX_CMDLINE`] bytes. Empty for a kernel thread
    /// and a zombie. Foreign bytes: show them through [`crate::Escaped`].
    pub fn cmdline(&self) -> Result<Vec<u8>, ReadError> {
        let fd = self.dir.open_file("cmdline").map_err(|error| self.seen(error))?;
        let mut text = vec![0; MAX_CMDLINE];
        let mut filled = 0;
        while filled < text.len() {
            match rustix::io::read(&fd, &mut text[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.seen(ReadError::new(self.dir.path("cmdline"), errno))),
            }
        }
        text.truncate(filled);
        Ok(text)
    }

    /// What variable `name` was when the process was executed; `None` where it was not set.
    pub fn environ(&self, name: &str) -> Result<Option<Vec<u8>>, ReadError> {
        Ok(variable(&self.text("environ")?, name.as_bytes()).map(<[u8]>::to_vec))
    }

    /// What its program is, as the kernel writes it ("/usr/bin/x (deleted)"). A kernel thread has none:
    /// [`ReadError::Missing`].
    pub fn exe(&self) -> Result<String, ReadError> {
        self.target("exe")
    }

    /// Its working directory.
    pub fn cwd(&self) -> Result<String, ReadError> {
        self.target("cwd")
    }

    /// `oom_score_adj`: -1000 (never killed for lack of memory) to 1000.
    pub fn oom_score_adj(&self) -> Result<i32, ReadError> {
        self.parsed("oom_score_adj", |text| scan::signed(text).and_then(|n| i32::try_from(n).ok()))
    }

    /// The id of its namespace of `kind` ("mnt", "pid", "ipc" ...): equal ids, same namespace.
    pub fn namespace(&self, kind: &str) -> Result<u64, ReadError> {
        let path = format!("ns/{kind}");
        let link = self.target(&path)?;
        namespace_id(link.as_bytes())
            .ok_or_else(|| ReadError::Malformed { path: self.dir.path(path), what: "no namespace's name" })
    }

    fn target(&self, link: &str) -> Result<String, ReadError> {
        self.dir.link(link).map_err(|error| self.seen(error))
    }
}

/// The value of `name` in NUL-separated "NAME=value" strings: the first one counts, as for getenv.
fn variable<'a>(environ: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    environ.split(|&b| b == 0).find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))
}

/// The number in "mnt:[4026531841]".
fn namespace_id(link: &[u8]) -> Option<u64> {
    let (_, id) = scan::key_value(link, b'[')?;
    id.ends_with(b"]").then(|| scan::number(id))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    fn process(fake: &FakeRoot) -> Process {
        Process::open(&Root::at(fake.path()).unwrap(), 7).unwrap()
    }

    #[test]
    fn how_it_was_started() {
        let fake = FakeRoot::new()
            .process(
                7,
                [
                    ("cmdline", &b"nginx: worker\0\0"[..]),
                    ("environ", b"PATH=/bin\0MALLOC_ARENA_MAX=2\0MALLOC_ARENA_MAX=3\0PATHS\0"),
                    ("oom_score_adj", b"-900\n"),
                    ("status", b""),
                ],
            )
            .link("proc/7/exe", "/usr/sbin/nginx (deleted)")
            .link("proc/7/ns/pid", "pid:[4026531836]")
            .link("proc/7/ns/mnt", "nonsense");
        let process = process(&fake);
        assert_eq!(process.cmdline().unwrap(), b"nginx: worker\0\0");
        assert_eq!(process.environ("MALLOC_ARENA_MAX").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(process.environ("MALLOC").unwrap(), None);
        assert_eq!(process.exe().unwrap(), "/usr/sbin/nginx (deleted)");
        assert_eq!(process.oom_score_adj().unwrap(), -900);
        assert_eq!(process.namespace("pid").unwrap(), 4_026_531_836);
        assert!(matches!(process.namespace("mnt"), Err(ReadError::Malformed { .. })));
        assert!(matches!(process.namespace("net"), Err(ReadError::Missing { .. })));
    }

    #[test]
    fn a_long_command_line_is_cut() {
        let fake = FakeRoot::new().process(7, [("cmdline", vec![b'x'; 1 << 20])]);
        assert_eq!(process(&fake).cmdline().unwrap().len(), MAX_CMDLINE);
    }

    #[test]
    fn an_ended_process_is_told_from_a_missing_file() {
        let fake = FakeRoot::new().process(7, [("status", ""), ("stat", "")]);
        let process = process(&fake);
        assert!(matches!(process.cmdline(), Err(ReadError::Missing { .. })));
        fake.remove("proc/7");
        assert!(matches!(process.cmdline(), Err(ReadError::Vanished { .. })));
        assert!(matches!(process.exe(), Err(ReadError::Vanished { .. })));
        let root = Root::at(fake.path()).unwrap();
        assert!(matches!(Process::open(&root, 7), Err(ReadError::Vanished { .. })));
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>, name: Vec<u8>) {
            let _ = (variable(&text, &name), namespace_id(&text));
        }
    }
}
