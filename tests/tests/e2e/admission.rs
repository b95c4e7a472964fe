//! What the API server itself accepts and refuses, by the committed resource definition.

use anyhow::{Context, bail, ensure};
use shadow_e2e::cluster::Cluster;
use shadow_e2e::{in_lab, migrate, root};

use crate::{alone, with_operator};

/// Each fixture's text, by its path.
fn fixtures(folder: &str) -> anyhow::Result<Vec<(String, String)>> {
    let folder = root().join("tests/fixtures").join(folder);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        found.push((path.display().to_string(), std::fs::read_to_string(&path)?));
    }
    ensure!(found.len() > 5, "the fixtures are where they are looked for");
    found.sort();
    Ok(found)
}

/// kubectl's words about one document; a refusal is an error.
fn apply(cluster: &Cluster, text: &str, for_real: bool) -> anyhow::Result<()> {
    let dry = if for_real { "--dry-run=none" } else { "--dry-run=server" };
    cluster.kubectl(&["apply", "-n", "default", dry, "-f", "-"], text)?;
    Ok(())
}

/// The last document of a fixture, after the ones before it exist, judged by the API server.
async fn judged(cluster: &Cluster, text: &str) -> anyhow::Result<anyhow::Result<()>> {
    let documents: Vec<&str> = text.split("\n---\n").collect();
    let (last, before) = documents.split_last().context("empty")?;
    for document in before {
        apply(cluster, document, true).context("the object that is changed")?;
    }
    let verdict = apply(cluster, last, false);
    if !before.is_empty() {
        migrate::delete_all(cluster).await?;
    }
    Ok(verdict)
}

#[test]
fn the_api_server_accepts_the_good_and_names_the_field_of_the_bad() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = with_operator().await?;
        migrate::delete_all(&cluster).await?;
        for (file, text) in fixtures("good")? {
            judged(&cluster, &text).await?.with_context(|| format!("{file} is accepted"))?;
        }
        for (file, text) in fixtures("bad")? {
            // The first line says what the refusal has to say.
            let expected = text.lines().next().and_then(|line| line.strip_prefix("# "));
            let expected = expected.with_context(|| format!("{file} names its refusal"))?;
            match judged(&cluster, &text).await? {
                Ok(()) => bail!("{file} is refused, but was accepted"),
                Err(error) => {
                    let said = format!("{error:#}");
                    ensure!(said.contains(expected), "{file}: expected {expected}, got: {said}");
                }
            }
        }
        Ok(())
    })
}
