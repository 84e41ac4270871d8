//! Programs that keep passwords: `docker-credential-<name>`, the protocol of docker's helpers.
//!
//! ```text
//! docker-credential-<name> get     stdin: the registry
//!                                  stdout: {"ServerURL": …, "Username": …, "Secret": …}
//! ```
//! A failure whose words say that nothing was found is no failure. Nothing secret is an
//! argument, and of what a helper writes only its complaints are ever shown.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::Secret;
use super::credentials::Credential;

/// How long a helper may take: it may ask another service, but never a person.
const DEADLINE: Duration = Duration::from_secs(30);
/// What helpers say that have nothing for a registry.
const NOT_FOUND: &str = "credentials not found";
/// The user name of what is a token and no password.
const TOKEN: &str = "<token>";
const MAX_WORDS: usize = 200;

/// A helper that does not help.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// Its name is no name of a program.
    #[error("`{0}` is not the name of a credential helper")]
    Name(String),
    /// It did not run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("{0} does not answer within {seconds} seconds", seconds = DEADLINE.as_secs())]
    Slow(String),
    /// It failed.
    #[error("{program} fails: {words}")]
    Failed {
        /// The program.
        program: String,
        /// Its words.
        words: String,
    },
    /// It says nothing that could be used.
    #[error("{0} does not answer with a user and a password")]
    Answer(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// What the helper `name` keeps for the registry `server`.
///
/// # Errors
/// [`HelperError`] where it does not do its part.
pub async fn get(name: &str, server: &str) -> Result<Option<Credential>, HelperError> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(HelperError::Name(name.to_owned()));
    }
    let program = format!("docker-credential-{name}");
    let answer = timeout(DEADLINE, call(&program, server)).await;
    let answer = answer.map_err(|_| HelperError::Slow(program.clone()))?;
    let output = answer.map_err(|source| HelperError::Run { program: program.clone(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // Helpers complain on stdout.
        let words = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        if words.contains(NOT_FOUND) {
            return Ok(None);
        }
        let words = words.trim().chars().take(MAX_WORDS).collect();
        return Err(HelperError::Failed { program, words });
    }
    match serde_json::from_str(&text) {
        Ok(Answer { username, secret }) if username != TOKEN => {
            Ok(Some(Credential { user: username, password: Secret::new(&secret) }))
        }
        _ => Err(HelperError::Answer(program)),
    }
}

async fn call(program: &str, server: &str) -> io::Result<std::process::Output> {
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read what it is asked says so by its answer.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    child.wait_with_output().await
}
