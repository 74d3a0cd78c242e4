//! Which of the kernel's events tell of path look-ups, and what their records say.
//!
//! The events are discovered, not listed: every system call whose entry has a `const char *` argument with
//! a path's name counts, so that a call added by a later kernel counts too. Three events of tasks tell who
//! was who, since most of those that look up in vain are short-lived.
//!
//! Not seen: look-ups by 32-bit programs on a 64-bit kernel (it does not trace their calls), through
//! io_uring, through the address of a Unix socket, and by the kernel itself (an NFS server, overlayfs).

use super::TraceError;
use super::format::{Field, Format, Header};
use super::page::Record;
use super::tracefs::Tracefs;
use crate::ReadError;

/// The names that the kernel's sources give to a path argument (include/linux/syscalls.h); other texts are
/// called "name", "buf", "_type" or the like.
const PATH_ARGUMENTS: [&str; 5] = ["filename", "pathname", "path", "oldname", "newname"];

/// `AT_EMPTY_PATH` of linux/fcntl.h: with an empty path the call is about the descriptor itself. glibc 2.33
/// to 2.38 calls fstat like that.
const AT_EMPTY_PATH: u64 = 0x1000;

/// `CLONE_THREAD` of linux/sched.h: the child is another thread of its parent's process.
const CLONE_THREAD: u64 = 0x10000;

/// A task's name; the kernel keeps 15 bytes and a NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Comm([u8; 16]);

impl Comm {
    /// For those that are counted together as they matter too little alone; no task can be called so, as it
    /// fills all 16 bytes.
    pub(super) const OTHERS: Comm = Comm(*b"(all the others)");

    pub(super) fn new(name: &[u8]) -> Comm {
        let mut comm = [0; 16];
        let len = name.len().min(15);
        comm[..len].copy_from_slice(&name[..len]);
        Comm(comm)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.split(|&b| b == 0).next().unwrap_or_default()
    }

    pub(super) fn is_unknown(&self) -> bool {
        self.0[0] == 0
    }
}

/// What a record tells. `tid` is the task that wrote it, in the initial pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A call with a path begins.
    Enter { tid: u32, call: u16, dfd: i32, path: PathAt, may_be_empty: bool },
    /// The call that `tid` is in has this path: a probe's record, between the other two.
    Path { tid: u32, path: PathAt },
    /// A call with a path ends, with what it returned.
    Exit { tid: u32, call: u16, ret: i64 },
    /// `tid` made `child`, which is called the same.
    Fork { tid: u32, child: u32, thread: bool, name: Comm },
    /// `tid` runs another program now; `path` is the program's file.
    Exec { tid: u32, path: PathAt },
    /// A task ended; `group_dead` if it was its process's last thread (unknown before 6.16: then the
    /// process's first thread stands for it).
    Died { tid: u32, name: Comm, group_dead: Option<bool> },
}

/// Where the text of a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathAt {
    /// In the caller's memory, where it may have changed since.
    Memory(u64),
    /// In the record: `len` bytes from `start` of the reader's text buffer.
    Text { start: u32, len: u32 },
}

/// How to read one kind of record.
#[derive(Debug)]
enum Kind {
    Enter(Entry),
    Path { text: Field },
    Exit { call: u16, ret: Field },
    Fork { child: Field, flags: Field, name: Field },
    Exec { path: Field },
    Died { name: Field, group_dead: Option<Field> },
}

/// The entry of a call with a path.
#[derive(Debug)]
struct Entry {
    call: u16,
    pointer: Field,
    /// The path itself, in kernels that copy it into the record (6.19).
    text: Option<Field>,
    dfd: Option<Field>,
    flags: Option<Field>,
}

/// Every event that matters, by the number its records carry.
#[derive(Debug)]
pub(super) struct Catalogue {
    header: Header,
    kinds: Vec<Option<Kind>>,
    pid: Field,
    /// "syscalls/sys_enter_openat" and so on, to be enabled.
    names: Vec<String>,
    paths: Paths,
}

/// How the path of a call is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paths {
    /// From the caller's memory.
    Memory,
    /// From the record of the call's entry (6.19).
    Entry,
    /// From a probe's record.
    Probe,
}

impl Catalogue {
    /// Reads this kernel's event descriptions.
    ///
    /// Errors: [`TraceError::NoEvents`] if it has no system call events.
    pub(super) fn discover(tracefs: &Tracefs) -> Result<Catalogue, TraceError> {
        let files = tracefs.files();
        let mut buf = Vec::new();
        let header = files.read("events/header_page", &mut buf)?;
        let header = Header::parse(header).ok_or(TraceError::NoEvents)?;
        let names = match files.list("events/syscalls") {
            Err(ReadError::Missing { .. }) => return Err(TraceError::NoEvents),
            names => names?,
        };
        let mut format = |event: &str| -> Option<Format> {
            Format::parse(files.read(&format!("events/{event}/format"), &mut buf).ok()?)
        };
        let mut found = Found::default();
        for name in names.iter().filter_map(|name| name.strip_prefix("sys_enter_")) {
            let (enter, exit) = (format!("syscalls/sys_enter_{name}"), format!("syscalls/sys_exit_{name}"));
            if let (Some(on_enter), Some(on_exit)) = (format(&enter), format(&exit)) {
                found.call(name, &on_enter, &on_exit, [enter, exit]);
            }
        }
        if found.names.is_empty() {
            return Err(TraceError::NoEvents);
        }
        for (event, read) in TASK_EVENTS {
            if let Some(format) = format(event) {
                found.add(format.id, read(&format), event.to_owned());
            }
        }
        let pid = found.pid.ok_or(TraceError::NoEvents)?;
        let paths = if found.exact { Paths::Entry } else { Paths::Memory };
        Ok(Catalogue { header, kinds: found.kinds, pid, names: found.names, paths })
    }

    /// Takes in `event`, a probe's, of which `format` describes the records.
    pub(super) fn add_probe(&mut self, event: &str, format: &Format) {
        let Some(text) = format.field("path").cloned() else { return };
        let (kinds, names) = (std::mem::take(&mut self.kinds), std::mem::take(&mut self.names));
        let mut found = Found { kinds, names, ..Found::default() };
        found.add(format.id, Some(Kind::Path { text }), event.to_owned());
        (self.kinds, self.names, self.paths) = (found.kinds, found.names, Paths::Probe);
    }

    /// The header of this kernel's sub-buffers.
    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// The events to enable.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// How paths are known: only from memory depends on reading them in time.
    pub(super) fn paths(&self) -> Paths {
        self.paths
    }

    /// What `record` tells; texts are appended to `texts`. `None` for any other event's record and for one
    /// that is shorter than its description.
    pub(super) fn decode(&self, record: &Record<'_>, texts: &mut Vec<u8>) -> Option<Event> {
        let data = record.data;
        let id = u16::from_ne_bytes(*data.first_chunk()?);
        let tid = self.pid.unsigned(data)? as u32;
        Some(match self.kinds.get(usize::from(id))?.as_ref()? {
            Kind::Enter(entry) => entry.decode(tid, data, texts)?,
            // Of a path that is no path (an error, or text that is not mapped) the kernel says "(fault)".
            Kind::Path { text } => match text.text(data)? {
                b"(fault)" => return None,
                path => Event::Path { tid, path: keep(path, texts) },
            },
            Kind::Exit { call, ret } => Event::Exit { tid, call: *call, ret: ret.signed(data)? },
            Kind::Fork { child, flags, name } => Event::Fork {
                tid,
                child: child.unsigned(data)? as u32,
                thread: flags.unsigned(data)? & CLONE_THREAD != 0,
                name: Comm::new(name.text(data)?),
            },
            Kind::Exec { path } => Event::Exec { tid, path: keep(path.text(data)?, texts) },
            Kind::Died { name, group_dead } => Event::Died {
                tid,
                name: Comm::new(name.text(data)?),
                group_dead: group_dead.as_ref().and_then(|f| f.unsigned(data)).map(|dead| dead != 0),
            },
        })
    }
}

impl Entry {
    fn decode(&self, tid: u32, data: &[u8], texts: &mut Vec<u8>) -> Option<Event> {
        let text = self.text.as_ref().and_then(|f| f.text(data));
        // The kernel marks a text that it cut with dots, and one it could not read with an empty text, which
        // is also what an empty path looks like: both are read from memory instead.
        let path = match text {
            Some(text) if !text.is_empty() && !text.ends_with(b"...") => keep(text, texts),
            _ => PathAt::Memory(self.pointer.unsigned(data)?),
        };
        let dfd = self.dfd.as_ref().and_then(|f| f.unsigned(data));
        let flags = self.flags.as_ref().and_then(|f| f.unsigned(data));
        Some(Event::Enter {
            tid,
            call: self.call,
            dfd: dfd.map_or(super::resolve::AT_FDCWD, |dfd| dfd as i32),
            path,
            may_be_empty: flags.is_some_and(|flags| flags & AT_EMPTY_PATH != 0),
        })
    }
}

/// Appends `text` to `texts`.
pub(super) fn keep(text: &[u8], texts: &mut Vec<u8>) -> PathAt {
    let start = texts.len() as u32;
    texts.extend_from_slice(text);
    PathAt::Text { start, len: text.len() as u32 }
}

type Reader = fn(&Format) -> Option<Kind>;

/// Task events, all older than 3.5, and how to read their records. A kernel without one of them costs names
/// of short-lived processes, no more.
const TASK_EVENTS: [(&str, Reader); 3] = [
    ("task/task_newtask", |format| {
        let [child, flags, name] = ["pid", "clone_flags", "comm"].map(|name| format.field(name).cloned());
        Some(Kind::Fork { child: child?, flags: flags?, name: name? })
    }),
    ("sched/sched_process_exec", |format| Some(Kind::Exec { path: format.field("filename")?.clone() })),
    ("sched/sched_process_exit", |format| {
        let group_dead = format.field("group_dead").cloned();
        Some(Kind::Died { name: format.field("comm")?.clone(), group_dead })
    }),
];

/// A catalogue in the making.
#[derive(Debug, Default)]
struct Found {
    kinds: Vec<Option<Kind>>,
    names: Vec<String>,
    pid: Option<Field>,
    calls: u16,
    exact: bool,
}

impl Found {
    /// Takes in the two events of call `name` if it has a path.
    fn call(&mut self, name: &str, enter: &Format, exit: &Format, events: [String; 2]) {
        let (Some(at), Some(ret)) = (path_argument(name, enter), exit.field("ret")) else { return };
        let pointer = enter.fields[at].clone();
        let text = enter.field(&format!("__{}_val", pointer.name)).filter(|f| f.is_data_loc()).cloned();
        self.exact |= text.is_some();
        let dfd = enter.fields[..at].iter().rfind(|f| f.name.ends_with("dfd")).cloned();
        let flags = match name {
            "newfstatat" | "fstatat64" | "statx" => enter.field("flag").or(enter.field("flags")).cloned(),
            _ => None,
        };
        self.pid = self.pid.take().or_else(|| enter.field("common_pid").cloned());
        let [on_enter, on_exit] = events;
        self.add(
            enter.id,
            Some(Kind::Enter(Entry { call: self.calls, pointer, text, dfd, flags })),
            on_enter,
        );
        self.add(exit.id, Some(Kind::Exit { call: self.calls, ret: ret.clone() }), on_exit);
        self.calls += 1;
    }

    fn add(&mut self, id: u16, kind: Option<Kind>, event: String) {
        let Some(kind) = kind else { return };
        let id = usize::from(id);
        if self.kinds.len() <= id {
            self.kinds.resize_with(id + 1, || None);
        }
        self.kinds[id] = Some(kind);
        self.names.push(event);
    }
}

/// Which argument of call `name` is the path to look up: its first one, but of a symbolic link the name of
/// the link, as its "oldname" is any text.
fn path_argument(name: &str, format: &Format) -> Option<usize> {
    let link = name.starts_with("symlink");
    format.fields.iter().position(|field| {
        &*field.kind == "const char *"
            && PATH_ARGUMENTS.contains(&&*field.name)
            && !(link && &*field.name == "oldname")
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::format::tests::{HEADER_PAGE, NEWFSTATAT};
    use super::*;
    use proptest::prelude::*;

    const EXIT: &str = "ID: 853\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\
        \tfield:long ret;\toffset:16;\tsize:8;\tsigned:1;\n";

    fn catalogue(name: &str, enter: &str) -> Catalogue {
        let mut found = Found::default();
        let (enter, exit) =
            (Format::parse(enter.as_bytes()).unwrap(), Format::parse(EXIT.as_bytes()).unwrap());
        found.call(name, &enter, &exit, ["e".to_owned(), "x".to_owned()]);
        let header = Header::parse(HEADER_PAGE.as_bytes()).unwrap();
        let pid = found.pid.unwrap();
        Catalogue {
            header,
            kinds: found.kinds,
            pid,
            names: found.names,
            paths: if found.exact { Paths::Entry } else { Paths::Memory },
        }
    }

    fn stat_record(flag: u64) -> Vec<u8> {
        let mut record = vec![0; 48];
        record[..2].copy_from_slice(&854u16.to_ne_bytes());
        record[4..8].copy_from_slice(&812u32.to_ne_bytes());
        record[16..24].copy_from_slice(&u64::from(-100i32 as u32).to_ne_bytes());
        record[24..32].copy_from_slice(&0x7ffc_0000u64.to_ne_bytes());
        record[40..48].copy_from_slice(&flag.to_ne_bytes());
        record
    }

    #[test]
    fn entry_and_exit_of_a_stat() {
        let catalogue = catalogue("newfstatat", NEWFSTATAT);
        let mut texts = Vec::new();
        let mut decode = |data: &[u8]| catalogue.decode(&Record { time: 0, data }, &mut texts);
        let enter = |may_be_empty| {
            let path = PathAt::Memory(0x7ffc_0000);
            Some(Event::Enter { tid: 812, call: 0, dfd: super::super::resolve::AT_FDCWD, path, may_be_empty })
        };
        assert_eq!(decode(&stat_record(0)), enter(false));
        assert_eq!(decode(&stat_record(AT_EMPTY_PATH)), enter(true));
        assert_eq!(decode(&stat_record(0)[..30]), None);
        let mut exit = vec![0; 24];
        exit[..2].copy_from_slice(&853u16.to_ne_bytes());
        exit[16..24].copy_from_slice(&(-2i64).to_ne_bytes());
        assert_eq!(decode(&exit), Some(Event::Exit { tid: 0, call: 0, ret: -2 }));
        assert_eq!(catalogue.paths(), Paths::Memory);
    }

    #[test]
    fn a_kernel_that_copies_the_path() {
        let field = "\tfield:__data_loc char[] __filename_val;\toffset:48;\tsize:4;\tsigned:0;\n";
        let catalogue = catalogue("newfstatat", &format!("{NEWFSTATAT}{field}"));
        assert_eq!(catalogue.paths(), Paths::Entry);
        let decode = |text: &[u8]| {
            let mut record = stat_record(0);
            record.extend_from_slice(&((text.len() as u32 + 1) << 16 | 52).to_ne_bytes());
            record.extend_from_slice(text);
            record.push(0);
            let mut texts = b"before".to_vec();
            match catalogue.decode(&Record { time: 0, data: &record }, &mut texts) {
                Some(Event::Enter { path: PathAt::Text { start, len }, .. }) => {
                    Some(texts[start as usize..][..len as usize].to_vec())
                }
                _ => None,
            }
        };
        assert_eq!(decode(b"/etc/passwd").as_deref(), Some(&b"/etc/passwd"[..]));
        assert_eq!(decode(b"/cut/off..."), None);
        assert_eq!(decode(b""), None);
    }

    #[test]
    fn a_probes_record() {
        let mut catalogue = catalogue("newfstatat", NEWFSTATAT);
        let format = "ID: 1338\n\tfield:__data_loc char[] path;\toffset:8;\tsize:4;\tsigned:1;\n";
        catalogue.add_probe("ebb_1_2_0/path", &Format::parse(format.as_bytes()).unwrap());
        assert_eq!((catalogue.paths(), catalogue.names().len()), (Paths::Probe, 3));
        let decode = |text: &[u8]| {
            let mut record = vec![0; 12];
            record[..2].copy_from_slice(&1338u16.to_ne_bytes());
            record[8..12].copy_from_slice(&((text.len() as u32 + 1) << 16 | 12).to_ne_bytes());
            record.extend_from_slice(text);
            record.push(0);
            catalogue.decode(&Record { time: 0, data: &record }, &mut Vec::new())
        };
        let path = PathAt::Text { start: 0, len: 2 };
        assert_eq!(decode(b"/x"), Some(Event::Path { tid: 0, path }));
        assert_eq!(decode(b"(fault)"), None);
        // The entry is still an event of its own.
        let entry = catalogue.decode(&Record { time: 0, data: &stat_record(0) }, &mut Vec::new());
        assert!(matches!(entry, Some(Event::Enter { .. })));
    }

    #[test]
    fn the_argument_that_is_looked_up() {
        let format = |fields: &[&str]| {
            let lines = fields.iter().enumerate();
            let lines = lines.map(|(i, f)| format!("\tfield:{f};\toffset:{};\tsize:8;\tsigned:0;\n", 8 * i));
            Format::parse(format!("ID: 1\n{}", lines.collect::<String>()).as_bytes()).unwrap()
        };
        let names = format(&["const char * oldname", "int newdfd", "const char * newname"]);
        assert_eq!(path_argument("symlinkat", &names), Some(2));
        assert_eq!(path_argument("linkat", &names), Some(0));
        assert_eq!(path_argument("sethostname", &format(&["const char * name", "int len"])), None);
        assert_eq!(path_argument("execve", &format(&["const char *const * argv"])), None);
    }

    proptest! {
        #[test]
        fn arbitrary_records_never_panic(id in 850u16..858, body: Vec<u8>) {
            let field = "\tfield:__data_loc char[] __filename_val;\toffset:20;\tsize:4;\tsigned:0;\n";
            let catalogue = catalogue("newfstatat", &format!("{NEWFSTATAT}{field}"));
            let record = [&id.to_ne_bytes()[..], &body].concat();
            let _ = catalogue.decode(&Record { time: 0, data: &record }, &mut Vec::new());
        }
    }
}
