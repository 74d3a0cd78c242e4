//! Both versions and the hybrid on fake roots, and the live hierarchy with a group of its own where allowed.

use super::*;
use crate::Process;
use ebbtide_testkit::FakeRoot;

const V1_MOUNT: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
    39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n";
const V2_MOUNT: &str = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

fn find(fake: &FakeRoot) -> Hierarchy {
    Hierarchy::find(&Root::at(fake.path()).unwrap()).unwrap().unwrap()
}

/// Adds group `path` of `files` to the hierarchy mounted at `mount`.
fn group(fake: FakeRoot, mount: &str, path: &str, files: &[(&str, &str)]) -> FakeRoot {
    let dir = format!("{mount}{path}");
    files.iter().fold(fake.dir(&dir), |fake, (name, text)| fake.file(format!("{dir}/{name}"), text))
}

fn v2() -> FakeRoot {
    let controllers = ("cgroup.controllers", "cpu memory pids\n");
    let fake = FakeRoot::new().file("proc/self/mountinfo", V2_MOUNT);
    let root = [controllers, ("cgroup.stat", "nr_descendants 2\nnr_dying_descendants 7\n")];
    let fake = group(fake, "sys/fs/cgroup", "", &root);
    let a = [
        controllers,
        ("memory.current", "1048576\n"),
        ("memory.max", "2097152\n"),
        ("memory.high", "max\n"),
        ("memory.low", "0\n"),
        ("memory.peak", "1572864\n"),
        ("memory.swap.current", "4096\n"),
        ("memory.swap.max", "max\n"),
        ("memory.stat", "anon 4096\nfile 524288\ninactive_file 262144\nsock 8192\nslab_reclaimable 77\n"),
        ("memory.events", "low 0\nhigh 3\nmax 5\noom 1\noom_kill 1\noom_group_kill 0\n"),
        (
            "memory.pressure",
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
        ("cgroup.stat", "nr_descendants 0\nnr_dying_descendants 4\n"),
        ("pids.current", "12\n"),
        ("pids.max", "max\n"),
        ("cgroup.procs", "5\n7\n"),
    ];
    group(fake, "sys/fs/cgroup", "/a b\\x2dc", &a)
}

#[test]
fn a_v2_group() {
    let fake = v2();
    let hierarchy = find(&fake);
    assert_eq!(hierarchy.version(), Version::V2);
    let sample = hierarchy.sample("/a b\\x2dc").unwrap();
    assert_eq!(
        (sample.current, sample.limit, sample.high),
        (Some(Bytes(1 << 20)), Some(Bytes(2 << 20)), None)
    );
    assert_eq!((sample.peak, sample.low, sample.min), (Some(Bytes(1_572_864)), Some(Bytes::ZERO), None));
    assert_eq!((sample.swap, sample.swap_limit), (Some(Bytes(4096)), None));
    assert_eq!(sample.working_set(), Some(Bytes((1 << 20) - 262_144)));
    assert_eq!((sample.kernel(), sample.sockets()), (Some(Bytes(77)), Some(Bytes(8192))));
    assert_eq!((sample.events.high, sample.events.max, sample.events.oom_kill), (3, 5, 1));
    assert_eq!((sample.descendants, sample.dying), (Some(0), Some(4)));
    assert_eq!(sample.pids, Some(Pids { current: 12, max: None }));
    assert!(sample.pressure.is_some() && sample.unread.is_empty());
    assert_eq!(hierarchy.procs("a b\\x2dc").unwrap(), [5, 7]);
}

#[test]
fn the_v2_root_and_a_group_without_the_controller_lack_figures() {
    let fake = v2();
    let hierarchy = find(&fake);
    let sample = hierarchy.sample("/").unwrap();
    assert_eq!((sample.path.as_path(), sample.current, sample.working_set()), (Path::new("/"), None, None));
    assert_eq!(sample.dying, Some(7));
    assert!(matches!(hierarchy.sample("/gone"), Err(ReadError::Missing { .. })));
    assert!(matches!(hierarchy.sample("/../../etc"), Err(ReadError::Malformed { .. })));
}

#[test]
fn the_v2_tree_with_hostile_names() {
    let fake = v2();
    let hostile = format!("/x\n\x1b[2J{}", "y".repeat(200));
    let fake = group(fake, "sys/fs/cgroup", &format!("{hostile}/z"), &[("memory.current", "5\n")]);
    let hierarchy = find(&fake);
    let tree = hierarchy.tree().unwrap();
    assert_eq!((tree.nodes.len(), tree.left_out, tree.unreadable), (4, 0, 0));
    assert_eq!(tree.nodes[0], Node { path: PathBuf::from("/"), current: None });
    let inner = tree.nodes.iter().find(|node| node.path.ends_with("z")).unwrap();
    assert_eq!((inner.path.to_str().unwrap(), inner.current), (&*format!("{hostile}/z"), Some(Bytes(5))));
    let root = Root::at(fake.path()).unwrap();
    assert_eq!(hierarchy.dying(&root, &tree), Some(7));
}

fn v1() -> FakeRoot {
    let files = [
        ("memory.usage_in_bytes", "1048576\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.limit_in_bytes", "3145728\n"),
        ("memory.max_usage_in_bytes", "2097152\n"),
        ("memory.stat", "inactive_file 1\ntotal_rss 4096\ntotal_inactive_file 65536\ntotal_swap 8192\n"),
        ("memory.kmem.usage_in_bytes", "300\n"),
        ("memory.kmem.tcp.usage_in_bytes", "200\n"),
        ("memory.failcnt", "9\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ];
    let fake = FakeRoot::new().file("proc/self/mountinfo", V1_MOUNT).file(
        "proc/cgroups",
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t12\t1\npids\t5\t3\t1\n",
    );
    let fake = group(fake, "sys/fs/cgroup/memory", "", &files);
    group(fake, "sys/fs/cgroup/memory", "/docker/x", &files)
}

#[test]
fn a_v1_group() {
    let fake = v1();
    let hierarchy = find(&fake);
    assert_eq!(hierarchy.version(), Version::V1);
    let sample = hierarchy.sample("/docker/x").unwrap();
    assert_eq!((sample.current, sample.limit, sample.soft_limit), (Some(Bytes(1 << 20)), None, None));
    assert_eq!(sample.memory_and_swap_limit, Some(Bytes(3 << 20)));
    assert_eq!((sample.swap, sample.working_set()), (Some(Bytes(8192)), Some(Bytes((1 << 20) - 65_536))));
    assert_eq!((sample.kernel(), sample.sockets()), (Some(Bytes(300)), Some(Bytes(200))));
    assert_eq!((sample.events.max, sample.events.oom_kill), (9, 2));
    let tree = hierarchy.tree().unwrap();
    assert_eq!(tree.nodes.len(), 3);
    assert_eq!(hierarchy.dying(&Root::at(fake.path()).unwrap(), &tree), Some(9));
}

#[test]
fn in_hybrid_the_controller_is_where_it_is() {
    let fake = v1();
    fake.set(
        "proc/self/mountinfo",
        format!("41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 x rw\n{V1_MOUNT}"),
    );
    fake.set("sys/fs/cgroup/unified/cgroup.controllers", "\n");
    assert_eq!(find(&fake).version(), Version::V1);
    fake.set("proc/self/mountinfo", "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 x rw\n");
    assert!(Hierarchy::find(&Root::at(fake.path()).unwrap()).unwrap().is_none(), "empty v2 alone");
}

#[test]
fn a_containers_mount_shows_a_part() {
    let fake = v1();
    let mount = V1_MOUNT.replace("0:32 / ", "0:32 /docker/abc ");
    fake.set("proc/self/mountinfo", mount);
    let hierarchy = find(&fake);
    let in_group = |path: &str| Membership { memory: Some(PathBuf::from(path)), ..Membership::default() };
    use crate::process::membership::Membership;
    assert_eq!(hierarchy.path_of(&in_group("/docker/abc/d")), Some(PathBuf::from("/d")));
    assert_eq!(hierarchy.path_of(&in_group("/docker/abc")), Some(PathBuf::from("/")));
    assert_eq!(hierarchy.path_of(&in_group("/d")), Some(PathBuf::from("/d")), "its own namespace");
    assert_eq!(hierarchy.path_of(&in_group("/../other")), None);
    let root = Root::at(fake.path()).unwrap();
    assert_eq!(hierarchy.dying(&root, &hierarchy.tree().unwrap()), None, "not all is visible");
}

#[test]
fn pids_of_a_process_in_either_version() {
    let fake = v1().process(7, [("status", ""), ("cgroup", "5:pids:/p\n0::/\n")]);
    let fake = group(fake, "sys/fs/cgroup/pids", "/p", &[("pids.current", "3\n"), ("pids.max", "100\n")]);
    let root = Root::at(fake.path()).unwrap();
    let process = Process::open(&root, 7).unwrap();
    assert_eq!(Pids::of(&root, &process).unwrap(), Some(Pids { current: 3, max: Some(100) }));
    let fake = v2().process(7, [("status", ""), ("cgroup", "0::/a b\\x2dc\n")]);
    let root = Root::at(fake.path()).unwrap();
    let process = Process::open(&root, 7).unwrap();
    assert_eq!(Pids::of(&root, &process).unwrap(), Some(Pids { current: 12, max: None }));
}

#[test]
fn the_live_hierarchy() {
    let root = Root::live().unwrap();
    let Some(hierarchy) = Hierarchy::find(&root).unwrap() else {
        println!("skipped: no memory controller is mounted here");
        return;
    };
    let me = Process::open(&root, std::process::id()).unwrap();
    let Some(path) = hierarchy.path_of(&me.membership().unwrap()) else {
        println!("skipped: this process is in a part of the hierarchy that is not mounted here");
        return;
    };
    let sample = hierarchy.sample(&path).unwrap();
    assert!(sample.stat.anon.unwrap() > Bytes::ZERO && sample.stat.inactive_file.is_some(), "{sample:?}");
    assert!(hierarchy.procs(&path).unwrap().contains(&me.pid()));
    let tree = hierarchy.tree().unwrap();
    assert!(tree.nodes.iter().any(|node| node.path == path));
    assert!(Pids::of(&root, &me).unwrap().is_none_or(|pids| pids.current > 0));
}

/// A real group of its own, limited, with its figures; removed again.
#[test]
fn a_real_group() {
    let root = Root::live().unwrap();
    let Some(hierarchy) = Hierarchy::find(&root).unwrap() else {
        println!("skipped: no memory controller is mounted here");
        return;
    };
    let name = format!("ebbtide test {}\\x2d", std::process::id());
    let dir = hierarchy.mount_point().join(&name);
    if let Err(error) = std::fs::create_dir(&dir) {
        println!("skipped: no group can be made here: {error}");
        return;
    }
    let limit = match hierarchy.version() {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    let limited = std::fs::write(dir.join(limit), "67108864");
    let (sample, tree) = (hierarchy.sample(&name), hierarchy.tree());
    std::fs::remove_dir(&dir).unwrap();
    let sample = sample.unwrap();
    assert_eq!(sample.path, Path::new("/").join(&name));
    assert!(tree.unwrap().nodes.iter().any(|node| node.path == sample.path));
    if limited.is_ok() {
        assert_eq!(sample.limit, Some(Bytes::from_mib(64)));
    }
    assert!(matches!(hierarchy.sample(&name), Err(ReadError::Missing { .. })));
}
