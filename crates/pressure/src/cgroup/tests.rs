//! Where the own group is found, on machines of every kind.

use super::*;
use ebbtide_testkit::FakeRoot;
use proptest::prelude::*;

/// A line of mountinfo.
fn mounted(root: &str, point: &str, kind: &str, options: &str) -> String {
    format!("35 31 0:32 {root} {point} rw,relatime shared:5 - {kind} {kind} {options}\n")
}

/// The own group on a machine with that membership and those mounts, and with the directories `dirs`.
fn own(version: Version, membership: &str, mounts: &str, dirs: &[&str]) -> Result<String, String> {
    let fake = FakeRoot::new().file("proc/self/cgroup", membership).file("proc/self/mountinfo", mounts);
    let fake = dirs.iter().fold(fake, FakeRoot::dir);
    let group = Group::own(&Machine::new(fake.path()), version)?;
    Ok(group.dir.to_string_lossy().into_owned())
}

const UNIFIED: &str = "/sys/fs/cgroup";

#[test]
fn the_unified_hierarchy() {
    let mounts = mounted("/", UNIFIED, "cgroup2", "rw,nsdelegate");
    let dir = "sys/fs/cgroup/system.slice/a.service";
    let found = own(Version::V2, "0::/system.slice/a.service\n", &mounts, &[dir]);
    assert_eq!(found.as_deref(), Ok("/sys/fs/cgroup/system.slice/a.service"));
    let gone = own(Version::V2, "0::/system.slice/b.service (deleted)\n", &mounts, &[dir]);
    assert!(gone.unwrap_err().contains("not mounted here"));
    assert!(own(Version::V1, "0::/\n", &mounts, &[dir]).unwrap_err().contains("v1"));
}

#[test]
fn both_at_once() {
    let membership = "9:name=systemd:/x\n4:cpu,memory:/m:with:colons\n0::/u\n";
    let mounts = mounted("/", "/sys/fs/cgroup/cpu,memory", "cgroup", "rw,cpu,memory")
        + &mounted("/", "/sys/fs/cgroup/unified", "cgroup2", "rw")
        + &mounted("/", "/sys/fs/cgroup/pids", "cgroup", "rw,pids");
    let dirs = ["sys/fs/cgroup/cpu,memory/m:with:colons", "sys/fs/cgroup/unified/u"];
    let found = |version| own(version, membership, &mounts, &dirs);
    assert_eq!(found(Version::V1).as_deref(), Ok("/sys/fs/cgroup/cpu,memory/m:with:colons"));
    assert_eq!(found(Version::V2).as_deref(), Ok("/sys/fs/cgroup/unified/u"));
}

#[test]
fn containers() {
    // Without a cgroup namespace the path is the host's, and the mount shows a part.
    let part = mounted("/docker/1", UNIFIED, "cgroup2", "ro");
    let found = own(Version::V2, "0::/docker/1/inner\n", &part, &["sys/fs/cgroup/inner"]);
    assert_eq!(found.as_deref(), Ok("/sys/fs/cgroup/inner"));
    // In one, both begin at its root.
    let whole = mounted("/", UNIFIED, "cgroup2", "ro");
    assert_eq!(own(Version::V2, "0::/\n", &whole, &["sys/fs/cgroup"]).as_deref(), Ok("/sys/fs/cgroup"));
    // A process that was moved out of it, and a mount of what lies above it.
    assert!(own(Version::V2, "0::/../2\n", &whole, &["sys/fs/cgroup"]).is_err());
    let above = mounted("/..", UNIFIED, "cgroup2", "ro");
    assert!(own(Version::V2, "0::/\n", &above, &["sys/fs/cgroup"]).is_err());
    // Another group than the one that is shown.
    assert!(own(Version::V2, "0::/docker/2\n", &part, &["sys/fs/cgroup/docker/2"]).is_err());
}

#[test]
fn names_are_bytes() {
    let mounts = mounted("/", r"/a\040b", "cgroup2", "rw");
    let found = own(Version::V2, "0::/c\td\n", &mounts, &["a b/c\td"]);
    assert_eq!(found.as_deref(), Ok("/a b/c\td"));
    assert_eq!(unescape(br"\134\0401\9\04"), Path::new("\\ 1\\9\\04"));
    assert_eq!(unescape(br"\777"), Path::new("\\777"));
}

#[test]
fn what_cannot_be_read_is_said() {
    let fake = FakeRoot::new();
    let said = Group::own(&Machine::new(fake.path()), Version::V2).unwrap_err();
    assert!(said.starts_with("/proc/self/cgroup: No such file"), "{said}");
    assert!(own(Version::V2, "", "", &[]).unwrap_err().contains("there is no cgroup v2"));
}

#[test]
fn the_nearest_limit_that_can_be_reached() {
    let file = |dir: &str, name: &str| format!("sys/fs/cgroup/{dir}{name}");
    let fake = FakeRoot::new()
        .file("proc/self/cgroup", "0::/a/b/c\n")
        .file("proc/self/mountinfo", mounted("/", UNIFIED, "cgroup2", "rw"))
        .file("proc/meminfo", "MemTotal:        1024 kB\n")
        .file(file("a/", "memory.max"), "1000\n")
        .file(file("a/b/", "memory.max"), "500000\n")
        .file(file("a/b/", "memory.high"), "400000\n")
        .file(file("a/b/c/", "memory.max"), "max\n")
        .file(file("a/b/c/", "memory.high"), "2000000\n");
    let machine = Machine::new(fake.path());
    let own = Group::own(&machine, Version::V2).unwrap();
    let limited = || own.limited(&machine).map(|group| (group.limit(&machine), group.dir));
    assert_eq!(limited(), Some((Some(400_000), "/sys/fs/cgroup/a/b".into())));
    fake.set(file("a/b/", "memory.max"), "max\n");
    fake.set(file("a/b/", "memory.high"), "max\n");
    assert_eq!(limited(), Some((Some(1000), "/sys/fs/cgroup/a".into())));
    fake.set(file("a/", "memory.max"), "max\n");
    assert_eq!(limited(), None);
}

proptest! {
    #[test]
    fn never_panics(text: Vec<u8>) {
        for version in [Version::V1, Version::V2] {
            let _ = membership(&text, version);
            let _ = mount(&text, version);
        }
        let _ = unescape(&text);
        let _ = meminfo(&text, b"MemTotal:");
    }

    #[test]
    fn a_group_never_leaves_its_mount(path in "(/[a-c.]{0,3}){0,5}", root in "(/[a-c.]{0,3}){0,3}") {
        if let Some(inside) = inside(Path::new(&path), Path::new(&root)) {
            prop_assert!(Path::new("/top").join(inside).starts_with("/top"));
            prop_assert!(!inside.components().any(|part| part == Component::ParentDir));
        }
    }
}
