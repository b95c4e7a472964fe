//! Commands in, exact text out. `TRYCMD=overwrite` writes the texts anew; read the difference.

#[test]
fn transcripts() {
    trycmd::TestCases::new().case("tests/transcripts/*.md");
}

#[test]
fn the_readme_shows_what_is_tested() {
    let folder = env!("CARGO_MANIFEST_DIR");
    let read = |path: &str| std::fs::read_to_string(format!("{folder}/{path}")).unwrap();
    let transcript = read("tests/transcripts/simulate.md");
    let begin = transcript.find("```console").unwrap();
    let end = begin + transcript[begin..].find("\n\n```\n").unwrap();
    let readme = read("../../README.md");
    assert!(
        readme.contains(&transcript[begin..end]),
        "copy simulate.md's first block to README.md"
    );
}
