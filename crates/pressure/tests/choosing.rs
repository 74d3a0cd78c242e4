//! Which source is used on which machine, and what is said of those that would have been better. The machines are
//! directories; what only a kernel can refuse is in `kernel.rs`.
#![allow(clippy::unwrap_used)]

use ebbtide_pressure::{Change, Kind, Level, Options, Pressure};
use ebbtide_testkit::FakeRoot;
use std::time::Duration;

const PSI: &str =
    "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";
const V2: &str = "30 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
const V1: &str = "30 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
const GROUP: &str = "sys/fs/cgroup/app";
const PATIENT: Option<Duration> = Some(Duration::from_secs(60));

fn meminfo(available: u32) -> String {
    format!("MemTotal:       1000000 kB\nMemFree: 0 kB\nMemAvailable: {available} kB\n")
}

/// A machine with PSI and cgroup v2, on which everything may be done.
fn modern() -> FakeRoot {
    FakeRoot::new()
        .file("proc/meminfo", meminfo(900_000))
        .file("proc/pressure/memory", PSI)
        .file("proc/self/cgroup", "0::/app\n")
        .file("proc/self/mountinfo", V2)
        .file(format!("{GROUP}/cgroup.type"), "domain\n")
        .file(format!("{GROUP}/memory.pressure"), PSI)
}

fn open(fake: &FakeRoot) -> Pressure {
    Pressure::open(Options::new().root(fake.path()).no_variables()).unwrap()
}

/// The source in use and its file; why each better one is not.
fn said(pressure: &Pressure) -> (Kind, String, Vec<String>) {
    let path = pressure.source().path().map(|path| path.display().to_string());
    let why = pressure.passed_over().iter().map(ToString::to_string).collect();
    (pressure.source().kind(), path.unwrap_or_default(), why)
}

#[test]
fn the_own_groups_triggers_come_first() {
    let fake = modern();
    let (kind, path, why) = said(&open(&fake));
    assert_eq!((kind, path.as_str()), (Kind::CgroupTrigger, "/sys/fs/cgroup/app/memory.pressure"));
    assert_eq!(why, ["the service manager's PSI file: MEMORY_PRESSURE_WATCH is not set"]);
    let armed = std::fs::read(fake.path().join(GROUP).join("memory.pressure")).unwrap();
    assert!(armed.starts_with(b"full 100000 1000000\0"), "{:?}", String::from_utf8_lossy(&armed));
}

#[test]
fn a_root_group_is_the_host() {
    let fake = modern();
    fake.remove(format!("{GROUP}/cgroup.type"));
    let (kind, _, why) = said(&open(&fake));
    assert_eq!(kind, Kind::HostTrigger);
    assert!(why[1].contains("root group"), "{why:?}");
    assert!(why[2].contains("memory.events") && why[2].contains("no limit"), "{why:?}");
    assert!(why[3].contains("pressure_level") && why[3].contains("no cgroup v1"), "{why:?}");
}

#[test]
fn events_are_taken_of_the_group_with_the_limit() {
    let fake = modern()
        .file(format!("{GROUP}/memory.max"), "max\n")
        .file(format!("{GROUP}/memory.events"), "max 0\n");
    fake.remove(format!("{GROUP}/memory.pressure"));
    assert_eq!(said(&open(&fake)).0, Kind::HostTrigger, "without a limit it would never speak");
    fake.set(format!("{GROUP}/memory.max"), "1000000\n");
    fake.set(format!("{GROUP}/memory.current"), "10\n");
    fake.set(format!("{GROUP}/memory.stat"), "inactive_file 5\n");
    let (kind, path, why) = said(&open(&fake));
    assert_eq!((kind, path.as_str()), (Kind::CgroupEvents, "/sys/fs/cgroup/app/memory.events"));
    assert!(why[1].contains("it is not there: No such file or directory"), "{why:?}");
    // In a pod's group the containers' own limits do not count.
    fake.set("proc/self/cgroup", "0::/app/inner\n");
    fake.set(format!("{GROUP}/inner/cgroup.type"), "domain\n");
    fake.set(format!("{GROUP}/memory.events.local"), "max 0\n");
    assert_eq!(said(&open(&fake)).1, "/sys/fs/cgroup/app/memory.events.local");
}

#[test]
fn v1_levels_need_the_controls() {
    let group = "sys/fs/cgroup/memory/app";
    let fake = FakeRoot::new()
        .file("proc/meminfo", meminfo(900_000))
        .file("proc/self/cgroup", "4:memory:/app\n")
        .file("proc/self/mountinfo", V1)
        .file(format!("{group}/memory.limit_in_bytes"), "1000000\n")
        .file(format!("{group}/memory.usage_in_bytes"), "1000\n")
        .file(format!("{group}/memory.stat"), "total_inactive_file 5\n");
    let (kind, path, why) = said(&open(&fake));
    assert_eq!((kind, path.as_str()), (Kind::CgroupUsage, "/sys/fs/cgroup/memory/app"));
    assert!(why[3].contains("memory.pressure_level): it is not there"), "{why:?}");
    assert!(why[4].contains("triggers on the host's PSI") && why[4].contains("not there"), "{why:?}");
    fake.set(format!("{group}/memory.pressure_level"), "");
    fake.set(format!("{group}/cgroup.event_control"), "");
    assert_eq!(said(&open(&fake)).0, Kind::CgroupLevel);
    let unlimited = i64::MAX - 4095;
    fake.set(format!("{group}/memory.limit_in_bytes"), unlimited.to_string());
    assert_eq!(said(&open(&fake)).0, Kind::HostAvailable);
}

#[test]
fn an_empty_machine_has_nothing() {
    let pressure = open(&FakeRoot::new());
    let (kind, _, why) = said(&pressure);
    assert_eq!((kind, why.len()), (Kind::Nothing, 9));
    assert_eq!(pressure.wait(Some(Duration::ZERO)), None);
    assert_eq!((pressure.try_next(), pressure.level()), (None, Level::None));
}

#[test]
fn files_that_make_no_sense_are_passed_over() {
    let fake = modern();
    fake.set(format!("{GROUP}/memory.pressure"), [0xff; 100]);
    fake.set("proc/pressure/memory", "some avg10=nan\n");
    fake.set("proc/self/mountinfo", [V2.as_bytes(), &[0xfe, b'\n'], V1.as_bytes()].concat());
    let (kind, _, why) = said(&open(&fake));
    assert_eq!(kind, Kind::HostAvailable);
    assert_eq!(why.iter().filter(|why| why.contains("it is no PSI file")).count(), 4, "{why:?}");
    fake.set("proc/meminfo", "MemTotal: 5 kB\n");
    assert_eq!(said(&open(&fake)).0, Kind::Nothing);
}

#[test]
fn dev_null_means_off() {
    let fake = modern();
    let options = Options::new().root(fake.path()).variable("MEMORY_PRESSURE_WATCH", "/dev/null");
    let (kind, path, why) = said(&Pressure::open(options).unwrap());
    assert_eq!((kind, path.as_str(), why.len()), (Kind::Off, "", 0));
}

/// The host's available memory, read at once and then every two seconds: below a tenth, and well above it again.
#[test]
fn the_last_resort_tells_of_pressure_and_of_its_end() {
    let fake = FakeRoot::new().file("proc/meminfo", meminfo(99_000));
    let pace = |options: Options| options.settle(Duration::ZERO).look_every(Duration::from_millis(1));
    let pressure = Pressure::open(pace(Options::new().root(fake.path()).no_variables())).unwrap();
    assert_eq!(pressure.source().kind(), Kind::HostAvailable);
    let onset = pressure.wait(PATIENT).unwrap();
    assert_eq!((onset.change(), onset.level), (Change::Onset, Level::Medium));
    assert_eq!(pressure.level(), Level::Medium);
    fake.set("proc/meminfo", meminfo(49_000));
    assert_eq!(pressure.wait(PATIENT).map(|event| event.level), Some(Level::Critical));
    fake.set("proc/meminfo", meminfo(500_000));
    let release = pressure.wait(PATIENT).unwrap();
    assert_eq!((release.change(), release.before), (Change::Release, Level::Critical));
}
