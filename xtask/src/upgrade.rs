//! `cargo xtask upgrade`: base → this → base → this, each in the middle of a migration.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use shadow_e2e::cluster::Cluster;
use shadow_e2e::scenario;
use shadow_e2e::upgrade::{Operator, Row, replace};

/// Options of `upgrade`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The commit of the other operator
    #[arg(long)]
    base: String,
    /// Leave the images as they are: nothing has changed since the last run
    #[arg(long)]
    no_build: bool,
}

const PHASES: [&str; 3] = ["Checkpointing", "Transferring", "Replaying"];

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let lab = shadow_lab::up(2)?;
    let base = checkout(&arguments.base)?;
    if !arguments.no_build {
        crate::image::push_all(&lab)?;
        crate::image::push_of(&base, "shadow/base", &lab)?;
    }
    let here = shadow_e2e::root();
    let old = Operator { name: "base", root: &base, image: "shadow/base" };
    let new = Operator { name: "this", root: &here, image: "shadow/shadow" };
    let rows = shadow_e2e::in_lab(async {
        let cluster = Cluster::connect().await?;
        println!("replaced       in phase       outcome    total_s  lost/dup/reord  probes  left");
        let mut rows = Vec::new();
        for phase in PHASES {
            for (before, after) in [(&old, &new), (&new, &old), (&old, &new)] {
                let row = Box::pin(replace(&cluster, before, after, phase)).await?;
                print(&row);
                rows.push(row);
            }
        }
        anyhow::Ok(rows)
    })?;
    let file = here.join("target/upgrade.json");
    scenario::write(&rows, &file)?;
    println!("{}", file.display());
    let good = rows.iter().all(Row::is_good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(row: &Row) {
    let (lost, duplicated, reordered) = row.wrong;
    println!(
        "{:<15}{:<15}{:<10}{:>8.1}  {:>14}{:>8}  {}",
        row.step,
        row.phase,
        row.outcome,
        row.total_s,
        format!("{lost}/{duplicated}/{reordered}"),
        row.failed_probes,
        row.leftovers.join(", ")
    );
}

/// The commit's files, in a worktree below target/.
fn checkout(commit: &str) -> anyhow::Result<PathBuf> {
    let root = shadow_e2e::root();
    let folder = root.join("target/upgrade-base");
    if !folder.exists() {
        git(&root, &["worktree", "add", "--detach", &folder.display().to_string(), commit])?;
    }
    git(&folder, &["checkout", "--quiet", "--detach", commit])?;
    Ok(folder)
}

fn git(at: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("git").args(arguments).current_dir(at).status();
    let status = status.context("can't run git")?;
    ensure!(status.success(), "git {} ended with {status}", arguments.join(" "));
    Ok(())
}
