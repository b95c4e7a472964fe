//! `shadow transfer`: sends a checkpoint archive to a registry as an image, or to a node agent.
//!
//! The transfer Job runs it on the node that has the archive, and the operator reads its one line of
//! JSON from the pod's termination message.
//!
//! An archive is the memory of a process. Nobody else removes it, so it is removed however this ends:
//! sent, given up, or stopped because the migration is rolled back. There is no second pod that would
//! need it: what passes is tried again here.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use backon::{ExponentialBuilder, Retryable as _};
use clap::Args;
use serde_json::{Value, json};
use shadow_checkpoint::agent::wire::Arrived;
use shadow_checkpoint::agent::{self, Agent};
use shadow_checkpoint::{Client, Credentials, ImageRef, image, kubelet_archives, push_checkpoint};

use crate::run::stop;

/// The kubelet takes 4096 bytes of a termination message; quotes and backslashes double in JSON.
const LONGEST_ERROR: usize = 1500;
/// Attempts after the first, and the pause before the first of them; it doubles: half a minute in
/// all, in which a registry can be started again. The source works meanwhile.
const RETRIES: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// What to send, and where.
#[derive(Args)]
pub struct TransferArgs {
    /// The checkpoint archive.
    #[arg(value_name = "CHECKPOINT-TAR")]
    archive: PathBuf,
    /// Where it goes: an image reference with a tag, or the address of a node agent that expects it.
    #[arg(value_name = "IMAGE-REF | AGENT-URL")]
    destination: String,
    /// The container that was checkpointed.
    container: String,
    /// Docker config file with the registry's credentials; else config.json in `DOCKER_CONFIG` or
    /// ~/.docker is used, if there is one.
    #[arg(long)]
    auth_file: Option<PathBuf>,
    /// Allow plain HTTP for any registry, and for credentials.
    #[arg(long)]
    plain_http: bool,
    /// The transfer's name at the agent.
    #[arg(long, default_value = "")]
    transfer: String,
    /// File with the token for the agent.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// The authorities of the agent's certificate, PEM.
    #[arg(long, env = "SHADOW_AGENT_AUTHORITIES", hide_env_values = true, default_value = "")]
    authorities: String,
    /// Also write the result there, if the file exists.
    #[arg(long, default_value = "/dev/termination-log")]
    result_file: PathBuf,
    /// Remove the archive in the end, whether it has been sent or not.
    #[arg(long)]
    remove: bool,
    /// With --remove: also the archives of the same container that were begun up to so many seconds
    /// before, by attempts whose answer was lost.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, requires = "remove")]
    attempts_within: u32,
}

/// Sends the archive. The result, or the error, is one line of JSON on standard output.
pub async fn run(args: TransferArgs) -> anyhow::Result<()> {
    transfer(&args, PAUSE, stop()).await
}

async fn transfer(
    args: &TransferArgs,
    pause: Duration,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let sent = tokio::select! {
        biased;
        () = stop => Err(anyhow!("send {}: stopped by a signal", args.archive.display())),
        sent = send_with_patience(args, pause) => sent,
    };
    let mut line = match &sent {
        Ok(report) => result(report, begun.elapsed().as_secs_f64()),
        Err(error) => failure(error),
    };
    line["peakBytes"] = json!(peak_memory());
    println!("{line}");
    let told = write(&args.result_file, &line);
    // Only now: until the result is told, the archive is the only copy that anyone knows of.
    if args.remove {
        let within = Duration::from_secs(args.attempts_within.into());
        let others = kubelet_archives::before(&args.archive, within);
        for archive in std::iter::once(&args.archive).chain(&others) {
            remove(archive);
        }
    }
    sent?;
    told
}

/// Another attempt at the whole would not help an archive away.
fn remove(archive: &Path) {
    if let Err(error) = std::fs::remove_file(archive) {
        tracing::warn!(archive = %archive.display(), %error, "could not remove the archive");
    }
}

async fn send_with_patience(args: &TransferArgs, pause: Duration) -> anyhow::Result<Arrived> {
    let pauses = ExponentialBuilder::default().with_min_delay(pause).with_max_times(RETRIES);
    (|| send(args))
        .retry(pauses)
        .when(is_passing)
        .notify(|error, pause| tracing::warn!("{error:#}; trying again in {pause:?}"))
        .await
}

/// Credentials that are refused stay refused.
fn is_passing(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(shadow_checkpoint::Error::is_passing)
        || error.downcast_ref().is_some_and(image::Error::is_passing)
        || error.downcast_ref().is_some_and(agent::Error::is_passing)
}

async fn send(args: &TransferArgs) -> anyhow::Result<Arrived> {
    if args.destination.starts_with("https://") {
        return send_to_agent(args).await;
    }
    let begun = Instant::now();
    let to = destination(&args.destination)?;
    let credentials = Credentials::find(&to.host, args.auth_file.as_deref())?;
    let client = Client::connect(&to.host, credentials, args.plain_http).await?;
    let report = push_checkpoint(&client, &args.archive, &to, &args.container).await?;
    Ok(report.arrived(begun.elapsed().as_secs_f64()))
}

async fn send_to_agent(args: &TransferArgs) -> anyhow::Result<Arrived> {
    let Some(file) = &args.token_file else {
        bail!("an agent wants a token: name its file with --token-file");
    };
    // Read each time: the kubelet renews it.
    let token = std::fs::read_to_string(file)
        .map_err(|error| anyhow!("read the token for the agent {}: {error}", file.display()))?;
    let to = Agent::new(&args.destination, args.authorities.as_bytes(), &token)?;
    Ok(to.upload(&args.transfer, &args.archive, &args.container).await?)
}

fn destination(text: &str) -> anyhow::Result<ImageRef> {
    if text.starts_with("http://") {
        bail!("{text}: checkpoints go to an agent by https:// only");
    }
    let to: ImageRef = text.parse()?;
    if to.tag.is_none() || to.digest.is_some() {
        bail!("{to}: write a tag and no digest, as {}/{}:consumer-0", to.host, to.repository);
    }
    Ok(to)
}

fn result(arrived: &Arrived, seconds: f64) -> Value {
    let seconds = (seconds * 1000.0).round() / 1000.0;
    json!(Arrived { seconds, ..arrived.clone() })
}

/// The most memory that this program has had, in bytes: the kernel's `VmHWM`.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn failure(error: &anyhow::Error) -> Value {
    let text: String = format!("{error:#}").chars().take(LONGEST_ERROR).collect();
    json!({ "error": text })
}

/// Writes the line into `file`, if there is one.
fn write(file: &Path, line: &Value) -> anyhow::Result<()> {
    if !file.exists() {
        return Ok(());
    }
    std::fs::write(file, line.to_string())
        .map_err(|error| anyhow!("write the result to {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: TransferArgs,
    }

    fn args(archive: &Path, destination: &str, result: &Path, more: &[&str]) -> TransferArgs {
        let (archive, result) = (archive.to_str().unwrap(), result.to_str().unwrap());
        let line = ["transfer", archive, destination, "app", "--result-file", result];
        Cli::try_parse_from([&line, more].concat()).unwrap().args
    }

    async fn transfer(args: &TransferArgs) -> anyhow::Result<()> {
        super::transfer(args, Duration::from_millis(1), std::future::pending()).await
    }

    #[tokio::test]
    async fn a_failure_is_told_in_the_result_file_and_the_archive_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, result) = (folder.path().join("a.tar"), folder.path().join("result"));
        for (destination, words) in [
            ("https://ms2m-agent:9443", "name its file with --token-file"),
            ("http://ms2m-agent:9443", "by https:// only"),
            ("registry:5000/checkpoints", "registry:5000/checkpoints:consumer-0"),
            ("checkpoints", "is not the name of an image"),
            // Port 1 on loopback: nothing listens there.
            ("127.0.0.1:1/checkpoints:a", "127.0.0.1:1: not reachable"),
        ] {
            std::fs::write(&archive, "no archive").unwrap();
            std::fs::write(&result, "").unwrap();
            assert!(transfer(&args(&archive, destination, &result, &[])).await.is_err());
            assert!(archive.exists(), "{destination}: kept without --remove");
            let args = args(&archive, destination, &result, &["--remove"]);
            assert!(transfer(&args).await.is_err());
            let line = std::fs::read_to_string(&result).unwrap();
            let line: Value = serde_json::from_str(&line).unwrap();
            assert!(line["error"].as_str().unwrap().contains(words), "{destination}: {line}");
            assert!(!archive.exists(), "{destination}");
        }
    }

    #[tokio::test]
    async fn a_stop_removes_the_archive_and_what_lost_attempts_left() {
        let folder = tempfile::tempdir().unwrap();
        let at = |time: &str| {
            folder.path().join(format!("checkpoint-consumer-0_shop-app-2026-11-23T{time}Z.tar"))
        };
        let (early, lost, archive) = (at("07:00:00"), at("08:00:00"), at("08:02:00"));
        for file in [&early, &lost, &archive] {
            std::fs::write(file, "memory").unwrap();
        }
        let result = folder.path().join("result");
        let more = ["--remove", "--attempts-within=150"];
        let args = args(&archive, "127.0.0.1:1/checkpoints:a", &result, &more);
        let stopped = super::transfer(&args, PAUSE, std::future::ready(())).await;
        assert!(stopped.unwrap_err().to_string().contains("stopped by a signal"));
        assert!(!archive.exists() && !lost.exists());
        assert!(early.exists(), "it is not of this checkpoint");
    }

    /// A registry that gives each request the next of `answers`, and counts them.
    async fn registry(answers: &'static [&str]) -> (String, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let image = format!("{}/checkpoints:a", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut first = [0; 1024];
                let read = socket.read(&mut first).await.unwrap_or(0);
                // TLS is tried first.
                let answer = if first[..read].starts_with(b"GET") {
                    let before = count.fetch_add(1, Ordering::Relaxed);
                    answers.get(before).or(answers.last()).unwrap()
                } else {
                    "400 not TLS"
                };
                let text =
                    format!("HTTP/1.1 {answer}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                let _ = socket.write_all(text.as_bytes()).await;
            }
        });
        (image, asked)
    }

    #[tokio::test]
    async fn what_passes_is_tried_again_and_a_refusal_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, result) = (folder.path().join("a.tar"), folder.path().join("result"));
        for (answers, asked, words) in [
            (&["503 Busy"][..], 6, "503 Service Unavailable"),
            (&["503 Busy", "403 Forbidden"][..], 2, "there are none, and it wants some"),
            (&["401 Unauthorized"][..], 1, "there are none, and it wants some"),
        ] {
            let (image, counted) = registry(answers).await;
            let error = transfer(&args(&archive, &image, &result, &[])).await.unwrap_err();
            assert!(format!("{error:#}").contains(words), "{error:#}");
            assert_eq!(counted.load(Ordering::Relaxed), asked, "{answers:?}");
        }
    }

    #[tokio::test]
    async fn a_result_file_that_does_not_exist_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let result = folder.path().join("result");
        assert!(transfer(&args(folder.path(), "checkpoints", &result, &[])).await.is_err());
        assert!(!result.exists());
    }

    #[test]
    fn the_result_is_what_the_operator_reads() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let arrived = Arrived {
            image: format!("r:5000/c@{digest}"),
            digest: digest.clone(),
            bytes: 7,
            base_image: "r:5000/app:1".to_owned(),
            seconds: 0.0,
        };
        assert_eq!(
            result(&arrived, 0.123_456),
            json!({
                "image": arrived.image, "digest": digest, "bytes": 7, "seconds": 0.123,
                "baseImage": "r:5000/app:1"
            })
        );
    }

    #[test]
    fn a_failure_fits_into_a_termination_message() {
        let line = failure(&anyhow::anyhow!("\"\\".repeat(5000))).to_string();
        assert!(line.len() < 4096, "{}", line.len());
    }
}
