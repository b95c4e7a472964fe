//! What the demo and the end-to-end tests share: a world to run a migration in, the workload, and
//! the report. All of it is real; nothing here decides anything about a migration.

pub mod bench;
pub mod broker;
pub mod cases;
pub mod chaos;
pub mod cluster;
pub mod http;
pub mod migrate;
pub mod report;
pub mod scenario;
pub mod upgrade;
pub mod workload;

/// Runs `work` on a runtime of this thread inside the lab's network.
pub fn in_lab<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    shadow_lab::enter()?;
    // One thread: network namespaces belong to threads, and this one has just entered.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// The repository's root folder.
pub fn root() -> std::path::PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
