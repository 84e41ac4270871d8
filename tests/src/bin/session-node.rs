//! A keeper and its workers for the suite about sessions, with nothing else to them.
//!
//! `session-node keeper CONFIG` keeps a [`Grove`] or a [`Gallery`] mounted and says `ready` on
//! stdout; `session-node worker DIR` is started by it. Files in the directory steer the worker:
//! `broken` makes it fail, `deaf` makes it never get ready, `replace` names the next program and
//! `done` ends everything. It leaves its process id in `pid` and the count of restarts in
//! `restarts`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use undermount_fs::fuse::{Adapter, Xattrs};
use undermount_fs::session::detach;
use undermount_fs::session::keeper::{
    Keeper, KeeperConfig, MountKind, MountSpec, RestartPolicy, WorkerConfig,
};
use undermount_fs::session::worker::{Farewell, Worker, end_process_on_panic};
use undermount_tests::gallery::Gallery;
use undermount_tests::grove::Grove;
use undermount_tests::session::NodeConfig;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let result = match (arguments[1].as_str(), &arguments[2]) {
        ("keeper", config) => keep(serde_json::from_str(config).unwrap()),
        (_, dir) => work(Path::new(dir)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn keep(config: NodeConfig) -> Result<(), Box<dyn std::error::Error>> {
    let keeper = Keeper::mount(KeeperConfig {
        mounts: config
            .mounts
            .iter()
            .map(|name| {
                let dir = config.dir.join(name);
                let kind = MountKind::Content;
                MountSpec { name: name.clone(), dir, kind, data: config.data_mode }
            })
            .collect(),
        worker: WorkerConfig {
            program: std::env::current_exe()?,
            arguments: vec!["worker".into(), config.dir.clone().into()],
            policy: RestartPolicy {
                ready_within: config.ready_within,
                answer_after: config.answer_after,
                unsound_limit: config.unsound_limit,
                silent_limit: config.silent_limit,
                stop_within: Duration::from_secs(3),
                longest_pause: Duration::from_millis(200),
                ..RestartPolicy::default()
            },
        },
        keepsakes: vec![("config".to_owned(), fs::File::open(&config.dir)?.into())],
        store: config.dir.clone(),
        init_mask: config.init_mask,
        context: None,
    })?;
    keeper.run(|| println!("ready"))?;
    Ok(())
}

fn work(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    end_process_on_panic();
    let (worker, inheritance) = Worker::from_stdin()?;
    leave_note(dir, "restarts", &worker.history().restarts.to_string())?;
    leave_note(dir, "pid", &std::process::id().to_string())?;
    if dir.join("deaf").exists() {
        thread::sleep(Duration::from_secs(3600));
    }
    if dir.join("broken").exists() {
        worker.failed("the grove is broken")?;
        return Err("broken".into());
    }
    assert!(inheritance.keepsakes.contains_key("config"));
    let runtime = tokio::runtime::Runtime::new()?;
    let gallery = Gallery::open(dir)?;
    worker.ready()?;
    let mut dirs = Vec::new();
    for (name, mount) in inheritance.mounts {
        dirs.push(mount.dir().to_owned());
        let xattrs = if name == "plain" { Xattrs::Refused } else { Xattrs::Answered };
        match &gallery {
            None => {
                let grove = Grove::new(mount.inflight());
                mount.serve(grove, 2)?
            }
            Some(view) => {
                let handle = runtime.handle().clone();
                let adapter = Adapter::new(view.clone(), xattrs, &mount, handle);
                mount.serve(adapter, 2)?
            }
        };
    }
    thread::scope(|scope| {
        scope.spawn(|| obey_files(dir, &worker));
        scope.spawn(|| beat(&worker));
        match worker.wait_for_farewell() {
            Farewell::Orphaned => dirs.iter().for_each(|dir| detach(dir).unwrap()),
            farewell => leave_note(dir, "farewell", &format!("{farewell:?}")).unwrap(),
        }
        std::process::exit(0)
    })
}

/// Writes a file of which nobody ever sees a half.
fn leave_note(dir: &Path, name: &str, words: &str) -> std::io::Result<()> {
    let draft = dir.join(format!("{name}.draft"));
    fs::write(&draft, words)?;
    fs::rename(draft, dir.join(name))
}

/// Tells the keeper again and again that all is well.
fn beat(worker: &Worker) {
    while worker.alive().is_ok() {
        thread::sleep(Duration::from_millis(100));
    }
}

/// Does what the files in `dir` ask for.
fn obey_files(dir: &Path, worker: &Worker) {
    loop {
        thread::sleep(Duration::from_millis(5));
        if let Ok(program) = fs::read_to_string(dir.join("replace")) {
            fs::remove_file(dir.join("replace")).unwrap();
            worker.replace(&PathBuf::from(program)).unwrap();
            std::process::exit(0);
        }
        if dir.join("done").exists() {
            // The keeper answers by ending this worker.
            return worker.done().unwrap();
        }
    }
}
