//! `cargo xtask`: what the project does to itself. One module per command.

mod bench;
mod chaos;
mod check_deps;
mod ci;
mod crds;
mod demo;
mod docs;
mod e2e;
mod fuzz;
mod image;
mod lab;
mod sim;
mod soak;
mod upgrade;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "What the project does to itself")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// A real Kubernetes on this machine, for demo, tests and evaluation
    #[command(subcommand)]
    Lab(lab::Command),
    /// Write the resource definitions in config/crd from the types in crates/api
    Crds(crds::Arguments),
    /// Write the tables and diagrams in the documents from the code
    Docs(docs::Arguments),
    /// Check that the crates depend on each other inward only, and that protocol is pure
    CheckDeps,
    /// Move a live consumer between two real nodes while messages keep coming
    Demo(demo::Arguments),
    /// Move every kind of workload in every way on the lab: tables of what it cost
    E2e(e2e::Arguments),
    /// Build the project's images and push them to a registry
    Image(image::Arguments),
    /// Run the protocol under plans of faults, and its mutants
    Sim(sim::Arguments),
    /// Measure side by side what ways cost
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Let things go wrong on the lab, in every phase of a migration; writes target/chaos.json
    Chaos(chaos::Arguments),
    /// Many migrations in a row on the lab, with faults; writes target/soak.json
    Soak(soak::Arguments),
    /// Replace the operator by another commit's, and back, in the middle of migrations
    Upgrade(upgrade::Arguments),
    /// Fuzz what reads other people's input (needs the nightly toolchain)
    Fuzz(fuzz::Arguments),
    /// Run everything CI runs
    Ci,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Lab(command) => lab::run(command),
        Task::Crds(arguments) => crds::run(&arguments),
        Task::Docs(arguments) => docs::run(&arguments),
        Task::CheckDeps => check_deps::run(),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::E2e(arguments) => e2e::run(&arguments),
        Task::Image(arguments) => image::run(&arguments),
        Task::Sim(arguments) => sim::run(&arguments),
        Task::Bench(what) => bench::run(&what),
        Task::Chaos(arguments) => chaos::run(&arguments),
        Task::Soak(arguments) => soak::run(&arguments),
        Task::Upgrade(arguments) => upgrade::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Ci => ci::run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
