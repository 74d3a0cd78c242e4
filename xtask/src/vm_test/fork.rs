//! `ebb fork` against the kernel's own answer: in the guest a real Redis grows step by step under strict
//! overcommit (mode 2) until BGSAVE's fork() is refused, and at each step ebb is asked first. As root and as
//! nobody, who is refused earlier: admin_reserve_kbytes and user_reserve_kbytes are kept from him.

use super::Outcome;
use super::client::Client;
use crate::vm::Kernel;
use anyhow::{Context, Result, bail, ensure};
use ebbtide_observe::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const SOCKET: &str = "/tmp/redis.sock";
const NOBODY: u32 = 65534;

/// Keys of 1,000 bytes to begin with, well below what a guest of 1 GiB lets fork; how many a step adds, so that
/// a fork costs 2.5 MB more, less than the 8 MB kept from nobody; and after how many steps it must be refused.
const FIRST: u32 = 120_000;
const KEYS: u32 = 2_000;
const STEPS: u32 = 40;

/// Boots a guest, lets Redis grow in it, and compares each prediction with what happened.
pub(super) fn check(kernel: Kernel) -> Result<Outcome> {
    let vm = crate::vm_command::with_binaries(kernel, true)?.program("redis-server");
    let output = super::guests_side(vm.memory(Bytes(1 << 30)), &["fork"])?;
    let steps = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter::<Value>()
        .collect::<Result<Vec<_>, _>>()
        .context("the guest printed no JSON")?;
    let root = judge("root", &steps).context("as root")?;
    let nobody = judge("nobody", &steps).context("as nobody")?;
    ensure!(nobody < root, "nobody was refused no earlier than root: the steps are too coarse");
    Ok(Outcome::Passed)
}

/// Compares what was predicted for `user` with what happened; returns how many forks succeeded.
///
/// The last fork that succeeds and the first that is refused may be predicted wrongly: the kernel compares a
/// sum that lags by up to 1/256 of memory (mm_compute_batch in mm/mm_init.c since 5.9: 4 MB here), and what
/// ebb itself is promised while it looks is gone a moment later. A step is 5 MB, so no other may be wrong.
fn judge(user: &str, steps: &[Value]) -> Result<usize> {
    let steps: Vec<&Value> = steps.iter().filter(|step| step["user"] == user).collect();
    let allowed = steps.iter().take_while(|step| step["forked"] == true).count();
    let refused = steps.len() - allowed;
    let off = steps.iter().filter(|step| step["ebb"]["would_succeed"] != step["forked"]).count();
    println!("         {user}: {allowed} forks succeeded, {refused} were refused; {off} predicted wrongly");
    ensure!(allowed > 1 && refused > 1, "the kernel did not both allow and refuse");
    for (index, step) in steps.into_iter().enumerate() {
        let would = step["ebb"]["would_succeed"].as_bool().context("ebb predicts nothing")?;
        let at_the_edge = index + 1 == allowed || index == allowed;
        ensure!(at_the_edge || step["forked"] == would, "ebb was wrong: {step}");
        ensure!(would || step["ebb"]["limit"] == "CommitLimit", "not the limit that refuses: {step}");
    }
    Ok(allowed)
}

/// The guest's side.
pub(crate) fn run() -> Result<ExitCode> {
    ensure!(fs::exists("/vm/mark")?, "this changes how memory is promised: only in the virtual machine");
    fs::write("/proc/sys/vm/overcommit_memory", "2").context("cannot set strict overcommit")?;
    for (user, id) in [("root", 0), ("nobody", NOBODY)] {
        let mut redis = Redis::start(id)?;
        redis.populate("first", FIRST)?;
        let mut refused = 0;
        for step in 0..STEPS {
            let prediction = predict(redis.child.id())?;
            let forked = redis.forks()?;
            println!("{}", json!({ "user": user, "step": step, "forked": forked, "ebb": prediction }));
            refused += u32::from(!forked);
            if refused == 3 {
                break;
            }
            redis.populate(&step.to_string(), KEYS)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn predict(pid: u32) -> Result<Value> {
    let ebb = Command::new("ebb").args(["fork", &pid.to_string(), "--json"]).output()?;
    let stderr = String::from_utf8_lossy(&ebb.stderr);
    ensure!(matches!(ebb.status.code(), Some(0 | 1)), "ebb fork: {}: {stderr}", ebb.status);
    serde_json::from_slice(&ebb.stdout).context("ebb fork printed no JSON")
}

/// A Redis that runs until it is dropped.
struct Redis {
    child: Child,
    socket: Client<UnixStream>,
}

impl Redis {
    fn start(user: u32) -> Result<Redis> {
        let mut child = Command::new("redis-server")
            .args(["--port", "0", "--unixsocket", SOCKET, "--dir", "/tmp", "--save", ""])
            .args(["--enable-debug-command", "yes", "--stop-writes-on-bgsave-error", "no"])
            .uid(user)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start redis-server")?;
        let mut log = BufReader::new(child.stdout.take().context("no log")?);
        let mut line = String::new();
        while !line.contains("eady to accept connections") {
            line.clear();
            ensure!(log.read_line(&mut line)? > 0, "redis-server ended before it was ready");
        }
        // Its log is of no more interest, but a full pipe would stop it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(Redis { child, socket: Client::new(UnixStream::connect(SOCKET)?) })
    }

    fn populate(&mut self, prefix: &str, keys: u32) -> Result<()> {
        let reply = self.socket.ask(&format!("DEBUG POPULATE {keys} {prefix} 1000"))?;
        ensure!(reply.starts_with("+OK"), "DEBUG POPULATE said {reply}");
        Ok(())
    }

    /// Whether BGSAVE's fork succeeds. Its child is ended at once: writing the dump would show nothing more.
    fn forks(&mut self) -> Result<bool> {
        let reply = self.socket.ask("BGSAVE")?;
        if reply.starts_with('-') {
            return Ok(false);
        }
        ensure!(reply.contains("started"), "BGSAVE said {reply}");
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        for child in children.split_whitespace() {
            let child = child.parse().ok().and_then(Pid::from_raw).context("no process id")?;
            kill_process(child, Signal::KILL)?;
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.socket.ask("INFO persistence")?.contains("rdb_bgsave_in_progress:0") {
            if Instant::now() > deadline {
                bail!("Redis does not notice that its child ended");
            }
        }
        Ok(true)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // One that ended by itself needs none of this.
        self.child.kill().and_then(|()| self.child.wait()).ok();
        fs::remove_file(SOCKET).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_prediction_is_refused() {
        let step = |forked: bool, would: bool| {
            let limit = if would { Value::Null } else { json!("CommitLimit") };
            json!({ "user": "root", "forked": forked, "ebb": { "would_succeed": would, "limit": limit } })
        };
        let [fine, refused] = [step(true, true), step(false, false)];
        let [pessimist, optimist] = [step(true, false), step(false, true)];
        let judge = |steps: [&Value; 4]| judge("root", &steps.map(Value::clone)).is_ok();
        assert!(judge([&fine, &fine, &refused, &refused]));
        assert!(judge([&fine, &pessimist, &refused, &refused]));
        assert!(judge([&fine, &fine, &optimist, &refused]));
        assert!(!judge([&pessimist, &fine, &refused, &refused]));
        assert!(!judge([&fine, &fine, &refused, &optimist]));
        assert!(!judge([&fine, &fine, &fine, &refused]));
        assert!(!judge([&refused, &refused, &refused, &refused]));
    }
}
