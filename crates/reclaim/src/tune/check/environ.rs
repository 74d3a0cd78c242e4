//! A process's environment: the variables that bear on its memory, and what they really do in it.
//!
//! It is what the process was executed with: what it has set or cleared itself since is not in /proc/PID/environ. Of a
//! program that shows a title it is what it has now ([`super::present`]).

use super::program::Program;
use super::{Checked, glibc, jemalloc, named, runtimes};
use crate::tune::judge::{Remark, Verdict};

/// A value longer than this is shown cut.
const SHOWN: usize = 200;

/// The variables in `environ`, NUL-separated "NAME=value"; of one given twice the first counts, as for getenv.
///
/// glibc up to 2.38 ends each tunable that it takes with a NUL in the environment itself (parse_tunables,
/// elf/dl-tunables.c, 2.36): what follows GLIBC_TUNABLES and begins so is put together again.
pub fn variables(environ: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut found: Vec<(String, String)> = Vec::new();
    for entry in environ.split(|&b| b == 0) {
        if let Some((_, tunables)) = found.last_mut().filter(|(name, _)| name == "GLIBC_TUNABLES")
            && entry.starts_with(b"glibc.")
        {
            tunables.push(':');
            tunables.push_str(&text(entry));
            continue;
        }
        let Some(at) = entry.iter().position(|&b| b == b'=') else { continue };
        let (name, value) = (text(&entry[..at]), text(&entry[at + 1..]));
        if !found.iter().any(|(known, _)| *known == name) {
            found.push((name, value));
        }
    }
    found
}

/// Whether the program has written a title over its environment, as Redis and nginx do: setproctitle takes the room of
/// both the arguments and the environment.
pub(super) fn overwritten(environ: &[u8]) -> bool {
    let first = environ.split(|&b| b == 0).next().unwrap_or_default();
    !environ.is_empty() && !first.contains(&b'=')
}

/// Judges the variables of `program` that bear on its memory.
pub fn check(program: &Program) -> Vec<Checked> {
    let variables = variables(&program.environ);
    let place = format!("/proc/{}/environ", program.pid);
    let mut checked = Vec::new();
    if overwritten(&program.environ) {
        let unit = program.unit.as_deref().unwrap_or("UNIT");
        let says = format!(
            "it has written its title over its environment, and no other is found in it: what it was executed with \
             cannot be read. Of a service: systemctl show {unit} -p Environment"
        );
        let remark = Remark::new(Verdict::Unknown, says);
        checked.push(Checked { place: place.clone(), text: "environment".to_owned(), remark });
    }
    for (name, value) in &variables {
        let mut text: String = format!("{name}={value}").chars().take(SHOWN).collect();
        if text.len() < name.len() + 1 + value.len() {
            text.push('…');
        }
        checked.extend(remarks(program, name, value).into_iter().map(|remark| Checked {
            place: place.clone(),
            text: text.clone(),
            remark,
        }));
    }
    checked
}

/// What one variable does; nothing where it has nothing to do with memory.
fn remarks(program: &Program, name: &str, value: &str) -> Vec<Remark> {
    match name {
        "GLIBC_TUNABLES" => glibc::tunables(program, value),
        "LD_PRELOAD" => preloaded(program, value),
        "GOMEMLIMIT" | "GOGC" => runtimes::go(program, name, value).into_iter().collect(),
        "JAVA_TOOL_OPTIONS" | "JDK_JAVA_OPTIONS" | "_JAVA_OPTIONS" | "JAVA_OPTS" | "NODE_OPTIONS" => {
            runtimes::heap_options(program, name, value).into_iter().collect()
        }
        "PYTHONMALLOC" => vec![runtimes::python_malloc(program, value)],
        _ if name.ends_with("MALLOC_CONF") => jemalloc::conf(program, name, value),
        _ => glibc::alias(program, name, value)
            .or_else(|| named::option(program, name, value))
            .into_iter()
            .collect(),
    }
}

/// The libraries that were to be loaded first (ld.so(8): separated by blanks or colons).
fn preloaded(program: &Program, value: &str) -> Vec<Remark> {
    let libraries = value.split([' ', ':']).filter(|library| !library.is_empty());
    let one = |library: &str| {
        let name = library.rsplit('/').next().unwrap_or_default();
        let is_it = |mapped: &str| {
            mapped.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if program.preloaded.contains(library) || (!name.is_empty() && program.libraries().any(is_it)) {
            return Remark::new(Verdict::Effective, format!("{library} is loaded"));
        }
        Remark::new(
            Verdict::NoEffect,
            format!(
                "{library} is not loaded: there is no such file for the program, it is for another architecture, or the \
                 program is static or set-user-ID; ld.so says so once, on stderr, and goes on"
            ),
        )
    };
    libraries.map(one).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ebbtide_heaps::Kind;
    use ebbtide_observe::Bytes;
    use proptest::prelude::*;

    /// A dynamic program with glibc 2.36's malloc.
    pub(in super::super) fn program() -> Program {
        Program {
            pid: 7,
            mapped: ["/usr/bin/x", "/lib/libc.so.6", "/lib/ld-linux-x86-64.so.2"].map(str::to_owned).into(),
            kinds: [Kind::Glibc].into(),
            glibc: Some((2, 36)),
            limit: Some(Bytes::from_gib(2)),
            ..Program::default()
        }
    }

    pub(in super::super) fn verdicts(program: Program, environ: &str) -> Vec<Verdict> {
        let program = Program { environ: environ.replace(' ', "\0").into_bytes(), ..program };
        let checked = check(&program);
        assert!(checked.iter().all(|one| !one.remark.says.is_empty() && one.place == "/proc/7/environ"));
        checked.iter().map(|one| one.remark.verdict).collect()
    }

    #[test]
    fn only_what_bears_on_memory() {
        assert_eq!(verdicts(program(), "PATH=/bin HOME=/ MALLOC LANG="), []);
        let twice = variables(b"A=1\0A=2\0=x\0B\0C=\0");
        let twice: Vec<_> = twice.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(twice, [("A", "1"), ("", "x"), ("C", "")]);
    }

    #[test]
    fn what_glibc_cut_is_put_together() {
        let cut = variables(
            b"GLIBC_TUNABLES=glibc.malloc.arena_max=1\0glibc.malloc.hugtlb=1\0glibc.x\0A=1\0glibc.y=1\0",
        );
        let tunables = "glibc.malloc.arena_max=1:glibc.malloc.hugtlb=1:glibc.x";
        assert_eq!(cut[0], ("GLIBC_TUNABLES".into(), tunables.into()));
        assert_eq!(cut.len(), 3);
    }

    #[test]
    fn an_overwritten_environment_is_said() {
        assert_eq!(verdicts(program(), "worker  process"), [Verdict::Unknown]);
        let zeroes = Program { environ: vec![0; 100], ..program() };
        assert_eq!(check(&zeroes)[0].remark.verdict, Verdict::Unknown);
        assert_eq!(check(&program()), [], "it may also be empty");
    }

    #[test]
    fn preloads() {
        use Verdict::*;
        let with = |value: &str| verdicts(program(), &format!("LD_PRELOAD={value}"));
        assert_eq!(with("/lib/libc.so.6"), [Effective]);
        assert_eq!(with("libc.so.6:/no/such/libjemalloc.so.2"), [Effective, NoEffect]);
        assert_eq!(with(":"), []);
        let linked = Program { preloaded: ["/etc/alternatives/x.so".to_owned()].into(), ..program() };
        assert_eq!(verdicts(linked, "LD_PRELOAD=/etc/alternatives/x.so:/x.so"), [Effective, NoEffect]);
    }

    proptest! {
        #[test]
        fn any_environment_can_be_checked(environ: Vec<u8>, name in "(MALLOC_[A-Z_]*|GLIBC_TUNABLES|MALLOC_CONF|LD_PRELOAD|GOMEMLIMIT|GOGC|MIMALLOC_[A-Z]*|TCMALLOC_[A-Z]*|JAVA_TOOL_OPTIONS|PYTHONMALLOC)", value: String) {
            let mut all = environ;
            all.push(0);
            all.extend_from_slice(format!("{name}={value}").as_bytes());
            for kind in [Kind::Glibc, Kind::Jemalloc, Kind::Mimalloc, Kind::Tcmalloc, Kind::CPython] {
                check(&Program { environ: all.clone(), kinds: [kind].into(), ..program() });
            }
        }
    }
}
