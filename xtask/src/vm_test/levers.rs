//! `ebb reclaim` on what a machine of today lacks or must not be made to suffer: memory.reclaim of cgroup v2, swap that
//! fills up, process_madvise, compaction, hugetlb, dentries. In the guest each lever is pulled once, and what ebb
//! predicted and says it returned is held against what the kernel's own figures did.

use super::Outcome;
use crate::vm::Kernel;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Hold so much memory from the first line of standard input on, until it closes
    #[arg(long, value_parser = crate::vm_command::size)]
    hold: Option<Bytes>,
}

const MIB: u64 = 1 << 20;
const SWAP: Bytes = Bytes(160 * MIB);
const GROUP: &str = "/sys/fs/cgroup/levers";

/// Boots a guest with swap and a disk, and pulls every lever in it.
pub(super) fn check(kernel: Kernel) -> Result<Outcome> {
    let vm = crate::vm_command::with_binaries(kernel, true)?;
    let vm = vm.memory(Bytes(1 << 30)).swap(SWAP).disk(Bytes(256 * MIB));
    super::guests_word(vm, &["levers"])
}

/// The guest's side.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(bytes) = args.hold {
        hold(bytes)?;
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(fs::exists("/vm/mark")?, "this pushes memory out: only in the virtual machine");
    fs::create_dir(GROUP)?;
    // Something is charged to it.
    read_in_group()?;
    if fs::exists(format!("{GROUP}/memory.reclaim"))? {
        cache()?;
        anonymous()?;
        full_swap()?;
    } else {
        let refused =
            ebb(&["--cgroup", "/levers", "--bytes", "1M"]).err().context("done without memory.reclaim")?;
        ensure!(refused.to_string().contains("does not have it"), "{refused}");
    }
    pageout()?;
    dentries()?;
    huge_pages()?;
    compaction()?;
    let history = ebb(&["--history"])?;
    let entries = history["entries"].as_array().context("no history")?;
    ensure!(entries.len() >= 6 && entries.iter().all(|entry| entry["outcome"] != "begun"), "{history:#}");
    println!("history: {} entries", entries.len());
    Ok(ExitCode::SUCCESS)
}

/// A process that holds memory which compresses badly, in the group if that is said.
pub(super) struct Holder {
    child: Child,
}

impl Holder {
    fn start(bytes: u64, group: Option<&str>) -> Result<Holder> {
        let mut holder = Holder::begin(bytes, group)?;
        let mut said = String::new();
        BufReader::new(holder.child.stdout.as_mut().context("no stdout")?).read_line(&mut said)?;
        ensure!(said == "ready\n", "the holder said {said:?}");
        Ok(holder)
    }

    /// One that is not waited for: the group may never let it have all.
    pub(super) fn begin(bytes: u64, group: Option<&str>) -> Result<Holder> {
        let mut child = Command::new("xtask")
            .args(["levers", "--hold", &bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(group) = group {
            fs::write(format!("{group}/cgroup.procs"), child.id().to_string())?;
        }
        child.stdin.as_mut().context("no stdin")?.write_all(b"go\n")?;
        Ok(Holder { child })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // One that ended by itself needs none of this.
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

fn hold(bytes: Bytes) -> Result<()> {
    let mut lines = std::io::stdin().lines();
    lines.next().context("nobody says when")??;
    let mut word = 88_172_645_463_325_252_u64;
    let words = (0..bytes.0 / 8).map(|_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    });
    let held: Vec<u64> = words.collect();
    println!("ready");
    lines.next().transpose()?;
    drop(std::hint::black_box(held));
    Ok(())
}

fn ebb(arguments: &[&str]) -> Result<Value> {
    let ebb = Command::new("ebb").args(["reclaim", "--json"]).args(arguments).output()?;
    let stderr = String::from_utf8_lossy(&ebb.stderr);
    ensure!(ebb.status.success() && stderr.is_empty(), "ebb reclaim {arguments:?}: {}: {stderr}", ebb.status);
    serde_json::from_slice(&ebb.stdout).context("ebb reclaim printed no JSON")
}

/// Predicted and returned bytes of `report`, which are printed as those of `case`.
fn figures(case: &str, report: &Value) -> Result<(u64, u64)> {
    let predicted = report["predicted_bytes"].as_u64().context("nothing predicted")?;
    let returned =
        report["returned_bytes"].as_u64().with_context(|| format!("{case}: nothing done: {report:#}"))?;
    let lever = &report["levers"][0];
    let short = lever["short"].as_str().map(|why| format!("; {why}")).unwrap_or_default();
    println!(
        "{case}: {} of {} in {} ms{short}",
        Bytes(returned),
        Bytes(predicted),
        report["elapsed_us"].as_u64().unwrap_or(0) / 1000
    );
    Ok((predicted, returned))
}

/// Whether `found` is within `percent` of `wanted`.
fn near(wanted: u64, found: u64, percent: u64) -> bool {
    wanted.abs_diff(found) <= wanted / 100 * percent
}

fn number(path: &str) -> Result<u64> {
    fs::read_to_string(path)?.trim().parse().with_context(|| format!("no number in {path}"))
}

/// The figure of `key` in /proc/meminfo.
fn meminfo(key: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no {key}"))? << 10)
}

/// Reads a file of 200 MiB in the group: a hole, which costs no disk.
fn read_in_group() -> Result<()> {
    let file = fs::File::create("/mnt/cached")?;
    file.set_len(200 * MIB)?;
    let script = format!("echo $$ >{GROUP}/cgroup.procs; cat /mnt/cached >/dev/null");
    ensure!(Command::new("sh").args(["-c", &script]).status()?.success(), "the file was not read");
    Ok(())
}

fn cache() -> Result<()> {
    read_in_group()?;
    let current = || number(&format!("{GROUP}/memory.current"));
    let before = current()?;
    let plan = ebb(&["--cgroup", "/levers", "--dry-run"])?;
    ensure!(near(before, current()?, 1), "a dry run took something");
    let (predicted, returned) = figures("cgroup, caches", &ebb(&["--cgroup", "/levers"])?)?;
    ensure!(plan["predicted_bytes"].as_u64().is_some_and(|plan| near(predicted, plan, 2)), "{plan:#}");
    ensure!(predicted > 150 * MIB && near(predicted, returned, 15), "not as predicted");
    ensure!(near(returned, before - current()?, 5), "memory.current fell by {}", before - current()?);
    read_in_group()?;
    let (predicted, returned) = figures("cgroup, 64 MiB", &ebb(&["--cgroup", GROUP, "--bytes", "64M"])?)?;
    ensure!(predicted == 64 * MIB && near(predicted, returned, 15), "not as asked for");
    fs::remove_file("/mnt/cached")?;
    Ok(())
}

/// Anonymous memory goes to swap where the goal takes it, and only there.
fn anonymous() -> Result<()> {
    let _holder = Holder::start(100 * MIB, Some(GROUP))?;
    let free = meminfo("SwapFree")?;
    let nothing = ebb(&["--cgroup", "/levers"])?;
    ensure!(nothing["predicted_bytes"].as_u64() < Some(20 * MIB), "{nothing:#}");
    ensure!(free - meminfo("SwapFree")? < 30 * MIB, "caches only, but {free} of swap fell");
    let current = || number(&format!("{GROUP}/memory.current"));
    let before = current()?;
    let report = ebb(&["--cgroup", "/levers", "--bytes", "60M"])?;
    let fell = before.saturating_sub(current()?);
    let (predicted, returned) = figures("cgroup, 60 MiB of anonymous memory", &report)?;
    let off = returned.abs_diff(fell);
    ensure!(off <= (2 * MIB).max(fell / 10), "memory.current fell by {fell}: {report:#}");
    // On a slow disk more goes to swap than has left memory, however much more: then it stops before swap is full, not
    // before there is little of it, and says so.
    let (total, free) = (meminfo("SwapTotal")?, meminfo("SwapFree")?);
    let stopped = report["levers"][0]["short"].as_str().is_some_and(|why| why.contains("swap"))
        && (total / 16..total / 2).contains(&free);
    let enough = near(predicted, returned, 15) || (stopped && returned >= 4 * MIB);
    ensure!(predicted == 60 * MIB && enough, "{free} of {total} of swap are left: {report:#}");
    Ok(())
}

/// More than swap has room for: what is left of it stays.
fn full_swap() -> Result<()> {
    let _holder = Holder::start(300 * MIB, Some(GROUP))?;
    let report = ebb(&["--cgroup", "/levers", "--floor", "0"])?;
    let (predicted, _) = figures("cgroup, all, with too little swap", &report)?;
    let (total, free) = (meminfo("SwapTotal")?, meminfo("SwapFree")?);
    println!("    {} of {} of swap are left", Bytes(free), Bytes(total));
    ensure!(predicted < total && free >= total / 16, "swap was filled: {free} of {total} are left");
    Ok(())
}

fn pageout() -> Result<()> {
    let holder = Holder::start(80 * MIB, None)?;
    let pid = holder.child.id().to_string();
    let cold = ebb(&[&pid, "--pageout", "--cold"])?;
    ensure!(figures("process, cold", &cold)? == (0, 0), "{cold:#}");
    let (predicted, returned) = figures("process, pageout", &ebb(&[&pid, "--pageout"])?)?;
    ensure!(predicted > 78 * MIB && near(predicted, returned, 10), "not as predicted");
    Ok(())
}

fn dentries() -> Result<()> {
    ebb(&["--host", "dentries"])?;
    let slab = meminfo("SReclaimable")?;
    for n in 0..100_000_u32 {
        ensure!(!fs::exists(format!("/mnt/{n:08}"))?, "a name that nobody made exists");
    }
    println!("    100,000 look-ups made {}", Bytes(meminfo("SReclaimable")?.saturating_sub(slab)));
    let (predicted, returned) = figures("dentries", &ebb(&["--host", "dentries"])?)?;
    ensure!(predicted > 15 * MIB && near(returned, predicted, 15), "not within 15%");
    Ok(())
}

fn huge_pages() -> Result<()> {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    fs::write(POOL, "50")?;
    let made = number(POOL)?;
    let report = ebb(&["--host", "hugetlb"])?;
    ensure!(figures("hugetlb", &report)? == (made * 2 * MIB, made * 2 * MIB), "not all: {report:#}");
    ensure!(made > 0 && number(POOL)? == 0, "{made} huge pages, and some are left");
    let undo = report["levers"][0]["undo"].as_str().context("no way back")?;
    ensure!(Command::new("sh").args(["-c", undo]).status()?.success() && number(POOL)? == made, "{undo}");
    fs::write(POOL, "0")?;
    Ok(())
}

/// Free memory in splinters: the lab's, of which seven pages in eight are free; what it locked is let be moved.
fn compaction() -> Result<()> {
    let mut lab = Command::new("ebbtide-lab")
        .args(["run", "physical-fragmentation/one-in-8", "--where", "vm"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    BufReader::new(lab.stdout.as_mut().context("no stdout")?).read_line(&mut said)?;
    if !said.contains("\"ready\":true") {
        println!("compaction: skipped: the lab cannot splinter this kernel's memory");
        lab.wait()?;
        return Ok(());
    }
    fs::write("/proc/sys/vm/compact_unevictable_allowed", "1")?;
    let report = ebb(&["--host", "compaction"])?;
    let lever = &report["levers"][0];
    let blocks = |key: &str| lever[key].as_u64().with_context(|| format!("no {key}: {report:#}"));
    let (predicted, made) = (blocks("predicted_blocks")?, blocks("made_blocks")?);
    println!(
        "compaction: {made} of {predicted} blocks in {} ms",
        report["elapsed_us"].as_u64().unwrap_or(0) / 1000
    );
    drop(lab.stdin.take());
    ensure!(lab.wait()?.success(), "the lab did not clean up");
    ensure!(predicted > 100 && made >= predicted / 2 && made <= predicted, "not as predicted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearness() {
        assert!(near(100 * MIB, 86 * MIB, 15) && near(100 * MIB, 114 * MIB, 15));
        assert!(!near(100 * MIB, 84 * MIB, 15) && !near(100 * MIB, 116 * MIB, 15) && !near(0, 1, 15));
    }
}
