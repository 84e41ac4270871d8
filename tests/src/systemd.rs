//! systemd as the first process of namespaces of its own, with no units but those of the test.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Outcome, Running, SOON, eventually, program, run};

/// Enters a control group of its own, so that systemd finds itself at the root of one, and gives
/// way to it; `$1` is a name for the group, `$2` the directory of the units.
const BEGIN: &str = "set -e
    for root in /sys/fs/cgroup/systemd /sys/fs/cgroup; do
        if [ -w $root/cgroup.procs ]; then
            mkdir -p $root/$1; echo $$ >$root/$1/cgroup.procs; break
        fi
    done
    exec unshare --kill-child --pid --mount --mount-proc --cgroup --uts --ipc sh -c \"
        mount -t tmpfs none /run && mkdir /run/systemd &&
        exec env container=test SYSTEMD_UNIT_PATH=$2 \\
            systemd --system --show-status=0 --log-target=console\"";

/// A running systemd. Everything in its namespaces ends with it.
pub struct Systemd {
    units: TempDir,
    process: Running,
    /// The first process, as this side of the namespaces knows it.
    init: i32,
}

impl Systemd {
    /// Why none can be started here, if that is so.
    pub fn lacking() -> Option<&'static str> {
        let group = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"].into_iter().any(|root| {
            let procs = Path::new(root).join("cgroup.procs");
            fs::OpenOptions::new().write(true).open(procs).is_ok()
        });
        (!group).then_some("no writable hierarchy of control groups is mounted")
    }

    /// Starts one that knows the units `units`, by name and text, and the targets that they may
    /// want.
    #[track_caller]
    pub fn start(units: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for target in ["default", "basic", "local-fs", "shutdown"] {
            let text = format!("[Unit]\nDescription={target}\n");
            fs::write(dir.path().join(format!("{target}.target")), text).unwrap();
        }
        for (name, text) in units {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let mut command = program("sh");
        command.args(["-c", BEGIN, "sh", &format!("undermount-test-{}", std::process::id())]);
        let process = Running::start(command.arg(dir.path()));
        let mut systemd = Self { units: dir, process, init: 0 };
        eventually("the first process of the namespace", SOON, || {
            systemd.init = init_below(systemd.process.id()).unwrap_or(0);
            systemd.init != 0
        });
        eventually("systemd answers", SOON, || {
            run(&mut systemd.command("systemctl list-units"), SOON).status.success()
        });
        systemd
    }

    /// A shell script, run beside the services.
    pub fn command(&self, script: &str) -> Command {
        let mut command = program("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--pid", "--uts", "--ipc"]);
        command.args(["--cgroup", "sh", "-euc", script]);
        command
    }

    /// Runs a shell script beside the services, and expects success.
    #[track_caller]
    pub fn run(&self, script: &str) -> Outcome {
        let outcome = run(&mut self.command(script), SOON);
        let log = || {
            format!(
                "{}\nsystemd in {}: {}",
                self.process.stderr(),
                self.units.path().display(),
                self.process.stdout()
            )
        };
        assert!(outcome.status.success(), "{outcome:?}\n{}", log());
        outcome
    }
}

/// The systemd that `parent` has started, once it is one.
fn init_below(parent: u32) -> Option<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.find(|number: &i32| {
        let status = fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
        let says = |line: &str| status.lines().any(|found| found == line);
        says("Name:\tsystemd") && says(&format!("PPid:\t{parent}"))
    })
}
