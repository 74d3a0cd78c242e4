//! The syntax of sysctl files, as systemd-sysctl(8) and sysctl.conf(5) have it: `key = value`, comments by `#` and
//! `;`, `-` before a key whose failure does not matter, dots or slashes between parts, globs.

use ebbtide_observe::{Root, scan};

/// One line that is no comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// Its key with dots between the parts, perhaps with `*`, `?` and `[...]` in them.
    pub key: String,
    /// What is behind the `=`; `None` without one.
    pub value: Option<String>,
    /// Whether it begins with `-`.
    pub optional: bool,
}

impl Line {
    /// Whether the key means `name` ("vm.swappiness").
    pub fn matches(&self, name: &str) -> bool {
        matches(self.key.as_bytes(), name.as_bytes())
    }

    /// Whether the key may mean several.
    pub fn is_glob(&self) -> bool {
        self.key.contains(['*', '?', '['])
    }
}

/// Every line of `text` that is no comment.
pub fn parse(text: &[u8]) -> Vec<Line> {
    let line = |(at, line)| {
        let (key, value, optional) = entry(line)?;
        Some(Line { number: at + 1, key, value, optional })
    };
    scan::lines(text).enumerate().filter_map(line).collect()
}

/// Key, value and whether it is optional; `None` for a comment and an empty line.
pub(crate) fn entry(line: &[u8]) -> Option<(String, Option<String>, bool)> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") || line.starts_with(b";") {
        return None;
    }
    let (optional, line) = line.strip_prefix(b"-").map_or((false, line), |rest| (true, rest));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(match scan::key_value(line, b'=') {
        Some((key, value)) => (dotted(&text(key)), Some(text(value)), optional),
        None => (dotted(&text(line.trim_ascii())), None, optional),
    })
}

/// `key` with dots between its parts. The first separator tells which kind the key is written in; in one of slashes
/// dots belong to names (sysctl_normalize, systemd 252).
fn dotted(key: &str) -> String {
    let key = key.strip_prefix("/proc/sys/").unwrap_or(key);
    match key.find(['.', '/']) {
        Some(at) if key[at..].starts_with('/') => key.replace('/', "."),
        _ => key.to_owned(),
    }
}

/// fnmatch(3) with FNM_PATHNAME, the parts separated by dots.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where the last star stands, and how far the name goes that it has taken.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if let Some(width) = one(&pattern[p..], name[n]) {
            p += width;
            n += 1;
        } else if let Some((at, taken)) = star.filter(|&(_, taken)| name[taken] != b'.') {
            star = Some((at, taken + 1));
            (p, n) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

/// How many bytes of `pattern` stand for the letter `c`; `None` where they do not.
fn one(pattern: &[u8], c: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => (c != b'.').then_some(1),
        b'[' => {
            let end = pattern.iter().skip(2).position(|&b| b == b']')? + 2;
            let set = &pattern[1..end];
            let (not, set) = match set.first() {
                Some(b'!' | b'^') => (true, &set[1..]),
                _ => (false, set),
            };
            let range = set.windows(3).any(|w| w[1] == b'-' && (w[0]..=w[2]).contains(&c));
            ((range || set.contains(&c)) != not && c != b'.').then_some(end + 1)
        }
        &b => (b == c).then_some(1),
    }
}

/// The files that are read at boot, in that order, below the root: of files of one name the first directory's, all by
/// name, and /etc/sysctl.conf last, as procps reads it and Debian's link 99-sysctl.conf has it.
pub fn files(root: &Root) -> Vec<String> {
    const DIRECTORIES: [&str; 5] =
        ["etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d"];
    let mut found: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    for directory in DIRECTORIES {
        for name in root.list(directory).unwrap_or_default() {
            if name.ends_with(".conf") {
                found.entry(name.clone()).or_insert_with(|| format!("{directory}/{name}"));
            }
        }
    }
    // The same file under two names is read once here.
    found.retain(|_, path| !root.link(path).is_ok_and(|to| to.ends_with("sysctl.conf")));
    let mut files: Vec<String> = found.into_values().collect();
    if root.open_file("etc/sysctl.conf").is_ok() {
        files.push("etc/sysctl.conf".to_owned());
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    #[test]
    fn syntax() {
        let text = b"# c\n; c\n\n vm.swappiness = 10 \r\n-vm/dirty_ratio=5\nvm.no_value\n/proc/sys/vm/x=1=2\nnet/ipv4/conf/eth0.1/x = 1\nlast=1";
        let lines = parse(text);
        let short: Vec<_> =
            lines.iter().map(|l| (l.number, l.key.as_str(), l.value.as_deref(), l.optional)).collect();
        assert_eq!(
            short,
            [
                (4, "vm.swappiness", Some("10"), false),
                (5, "vm.dirty_ratio", Some("5"), true),
                (6, "vm.no_value", None, false),
                (7, "vm.x", Some("1=2"), false),
                (8, "net.ipv4.conf.eth0.1.x", Some("1"), false),
                (9, "last", Some("1"), false),
            ]
        );
    }

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("vm.swappiness", "vm.swappiness", true),
            ("vm.*ratio", "vm.dirty_ratio", true),
            ("vm.*ratio", "vm.dirty_bytes", false),
            ("*.swappiness", "vm.swappiness", true),
            ("*", "vm.swappiness", false),
            ("vm.dirty_?atio", "vm.dirty_ratio", true),
            ("vm?swappiness", "vm.swappiness", false),
            ("vm.[a-d]irty_ratio", "vm.dirty_ratio", true),
            ("vm.[!d]irty_ratio", "vm.dirty_ratio", false),
            ("vm.[", "vm.[", false),
            ("", "", true),
            ("**", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn files_in_the_order_of_boot() {
        let fake = FakeRoot::new()
            .file("usr/lib/sysctl.d/50-a.conf", "")
            .file("usr/lib/sysctl.d/10-b.conf", "")
            .file("etc/sysctl.d/50-a.conf", "")
            .file("etc/sysctl.d/README", "")
            .link("etc/sysctl.d/99-sysctl.conf", "../sysctl.conf")
            .file("etc/sysctl.conf", "");
        let root = Root::at(fake.path()).unwrap();
        assert_eq!(files(&root), ["usr/lib/sysctl.d/10-b.conf", "etc/sysctl.d/50-a.conf", "etc/sysctl.conf"]);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>, pattern: Vec<u8>, name: Vec<u8>) {
            parse(&text);
            matches(&pattern, &name);
        }

        #[test]
        fn a_name_matches_itself(name in "[a-z_.]{0,20}") {
            prop_assert!(matches(name.as_bytes(), name.as_bytes()));
        }
    }
}
