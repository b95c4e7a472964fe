//! `shadow transfer`: sends a checkpoint archive to a registry, as an image.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use shadow_checkpoint::{Client, Credentials, ImageRef, push_checkpoint};

/// What to send, and where.
#[derive(Args)]
pub struct TransferArgs {
    /// The checkpoint archive.
    archive: PathBuf,
    /// Where it goes: an image reference with a tag.
    #[arg(value_name = "IMAGE-REF")]
    destination: String,
    /// The container that was checkpointed.
    container: String,
    /// Docker config file with the registry's credentials.
    #[arg(long)]
    auth_file: Option<PathBuf>,
    /// Allow plain HTTP for any registry, and for credentials.
    #[arg(long)]
    plain_http: bool,
    /// Also write the result there, if the file exists.
    #[arg(long)]
    result_file: Option<PathBuf>,
    /// Remove the archive when it has been sent.
    #[arg(long)]
    remove: bool,
}

/// Sends the archive. The result, or the error, is one line of JSON on standard output.
pub async fn run(args: TransferArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let sent = send(&args).await;
    let line = match &sent {
        Ok((image, bytes)) => json!({
            "image": image,
            "bytes": bytes,
            "seconds": begun.elapsed().as_secs_f64(),
        }),
        Err(error) => json!({ "error": format!("{error:#}") }),
    };
    println!("{line}");
    if let Some(file) = args.result_file.as_ref().filter(|file| file.exists()) {
        std::fs::write(file, line.to_string()).with_context(|| file.display().to_string())?;
    }
    sent?;
    // Only when the result is written: until then the archive is the only copy.
    if args.remove {
        std::fs::remove_file(&args.archive)
            .with_context(|| format!("remove {}", args.archive.display()))?;
    }
    Ok(())
}

async fn send(args: &TransferArgs) -> anyhow::Result<(String, u64)> {
    if args.destination.starts_with("http://") || args.destination.starts_with("https://") {
        bail!("sending a checkpoint to an agent is not part of this version; name an image");
    }
    let to: ImageRef = args.destination.parse()?;
    if to.tag.is_none() {
        bail!("{to}: write a tag, as {to}:consumer-0");
    }
    let credentials = match &args.auth_file {
        Some(file) => credentials(file, &to.host)?,
        None => None,
    };
    let client = Client::connect(&to.host, credentials, args.plain_http).await?;
    let report = push_checkpoint(&client, &args.archive, &to, &args.container).await?;
    Ok((report.image.to_string(), report.bytes))
}

fn credentials(file: &Path, host: &str) -> anyhow::Result<Option<Credentials>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("read the docker config {}", file.display()))?;
    Ok(Credentials::from_docker_config(&text, host)?)
}
