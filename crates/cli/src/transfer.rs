//! `shadow transfer`: sends a checkpoint archive to a registry, as an image.
//!
//! The transfer Job runs it on the node that has the archive, and the operator reads its one line of
//! JSON from the pod's termination message.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use shadow_checkpoint::{Client, Credentials, ImageRef, PushReport, push_checkpoint};

/// The kubelet takes 4096 bytes of a termination message; quotes and backslashes double in JSON.
const LONGEST_ERROR: usize = 1500;

/// What to send, and where.
#[derive(Args)]
pub struct TransferArgs {
    /// The checkpoint archive.
    #[arg(value_name = "CHECKPOINT-TAR")]
    archive: PathBuf,
    /// Where it goes: an image reference with a tag.
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
    /// Also write the result there, if the file exists.
    #[arg(long, default_value = "/dev/termination-log")]
    result_file: PathBuf,
    /// Remove the archive when it has been sent.
    #[arg(long)]
    remove: bool,
}

/// Sends the archive. The result, or the error, is one line of JSON on standard output.
pub async fn run(args: TransferArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let sent = send(&args).await;
    let line = match &sent {
        Ok(report) => result(report, begun.elapsed().as_secs_f64()),
        Err(error) => failure(error),
    };
    println!("{line}");
    if args.result_file.exists() {
        write(&args.result_file, &line)?;
    }
    sent?;
    // Only now: until the result is told, the archive is the only copy that anyone knows of.
    if args.remove
        && let Err(error) = std::fs::remove_file(&args.archive)
    {
        // The image is there; another attempt at the whole would not help the archive away.
        tracing::warn!(archive = %args.archive.display(), %error, "could not remove the archive");
    }
    Ok(())
}

async fn send(args: &TransferArgs) -> anyhow::Result<PushReport> {
    let to = destination(&args.destination)?;
    let credentials = Credentials::find(&to.host, args.auth_file.as_deref())?;
    let client = Client::connect(&to.host, credentials, args.plain_http).await?;
    Ok(push_checkpoint(&client, &args.archive, &to, &args.container).await?)
}

fn destination(text: &str) -> anyhow::Result<ImageRef> {
    if text.starts_with("http://") || text.starts_with("https://") {
        bail!("Direct transfer isn't part of this version: name an image, as registry:5000/a:tag");
    }
    let to: ImageRef = text.parse()?;
    if to.tag.is_none() || to.digest.is_some() {
        bail!("{to}: write a tag and no digest, as {}/{}:consumer-0", to.host, to.repository);
    }
    Ok(to)
}

fn result(report: &PushReport, seconds: f64) -> Value {
    json!({
        "image": report.image.to_string(),
        "digest": report.digest,
        "bytes": report.bytes,
        "seconds": (seconds * 1000.0).round() / 1000.0,
        "baseImage": report.facts.base_image(),
    })
}

fn failure(error: &anyhow::Error) -> Value {
    let text: String = format!("{error:#}").chars().take(LONGEST_ERROR).collect();
    json!({ "error": text })
}

fn write(file: &Path, line: &Value) -> anyhow::Result<()> {
    std::fs::write(file, line.to_string())
        .map_err(|error| anyhow::anyhow!("write the result to {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: TransferArgs,
    }

    async fn transfer(archive: &Path, destination: &str, result: &Path) -> anyhow::Result<()> {
        let (archive, result) = (archive.to_str().unwrap(), result.to_str().unwrap());
        let line = ["transfer", archive, destination, "app", "--result-file", result, "--remove"];
        run(Cli::try_parse_from(line).unwrap().args).await
    }

    #[tokio::test]
    async fn a_failure_is_told_in_the_result_file_and_keeps_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, result) = (folder.path().join("a.tar"), folder.path().join("result"));
        std::fs::write(&archive, "no archive").unwrap();
        for (destination, words) in [
            ("https://ms2m-agent:9443", "Direct transfer isn't part of this version"),
            ("registry:5000/checkpoints", "registry:5000/checkpoints:consumer-0"),
            ("checkpoints", "is not the name of an image"),
            // Port 1 on loopback: nothing listens there.
            ("127.0.0.1:1/checkpoints:a", "127.0.0.1:1: not reachable"),
        ] {
            std::fs::write(&result, "").unwrap();
            assert!(transfer(&archive, destination, &result).await.is_err());
            let line = std::fs::read_to_string(&result).unwrap();
            let line: Value = serde_json::from_str(&line).unwrap();
            assert!(line["error"].as_str().unwrap().contains(words), "{destination}: {line}");
        }
        assert!(archive.exists());
    }

    #[tokio::test]
    async fn a_result_file_that_does_not_exist_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let result = folder.path().join("result");
        assert!(transfer(folder.path(), "checkpoints", &result).await.is_err());
        assert!(!result.exists());
    }

    #[test]
    fn the_result_is_what_the_operator_reads() {
        let image: ImageRef = format!("r:5000/c@sha256:{}", "0".repeat(64)).parse().unwrap();
        let digest = image.reference().to_owned();
        let facts = shadow_checkpoint::archive::Facts {
            image: "r:5000/app:1".to_owned(),
            ..Default::default()
        };
        let report = PushReport { image: image.clone(), digest: digest.clone(), bytes: 7, facts };
        assert_eq!(
            result(&report, 0.123_456),
            json!({
                "image": image.to_string(), "digest": digest, "bytes": 7, "seconds": 0.123,
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
