//! Registries with a token server.

use super::*;
use crate::tokens::{Manners, TokenServer};

const SCOPE: &str = "scope=repository%3Ateam%2Fcheckpoints%3Apull%2Cpush";

/// A registry whose token server has these manners, and an archive to push.
async fn rig(manners: Manners) -> (Double, TokenServer, Rig) {
    let server = TokenServer::start(manners).await;
    let double = Double::start(Lock::Tokens(server.clone())).await;
    let rig = Rig::before(double.address).await;
    (double, server, rig)
}

fn secret() -> Option<Credentials> {
    Credentials::basic("name", "secret")
}

fn wanting() -> Manners {
    Manners { wants: Some(BASIC), ..Manners::default() }
}

/// What every registry with a token server must do.
async fn token_suite(registry: SocketAddr) {
    suite(registry, secret()).await;
    let rig = Rig::before(registry).await;
    for credentials in [None, Credentials::basic("name", "hunter2")] {
        let client = rig.client_with(credentials.clone()).await.unwrap();
        let error = client.may_push("team/checkpoints").await.unwrap_err();
        let text = format!("{error} {error:?}");
        let words = if credentials.is_some() { "refuses them" } else { "dockerconfigjson" };
        assert!(matches!(error, Error::Auth { .. }) && text.contains(words), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("Bearer"), "{text}");
    }
}

#[tokio::test]
async fn the_double_with_tokens_passes_the_suite() {
    let server = TokenServer::start(wanting()).await;
    token_suite(Double::start(Lock::Tokens(server)).await.address).await;
}

#[tokio::test]
async fn docker_registry_with_tokens_passes_the_suite() {
    let server = TokenServer::start(wanting()).await;
    let certificate = |folder: &std::path::Path| {
        std::fs::write(folder.join("tokens.pem"), server.certificate()).unwrap();
    };
    let Some(registry) = Real::start(Kind::Tokens(server.address), certificate) else { return };
    token_suite(registry.address).await;
}

#[tokio::test]
async fn a_token_is_asked_for_once_per_scope() {
    let manners = Manners { name: "access_token", ..Manners::default() };
    let (double, server, rig) = rig(manners).await;
    let client = rig.client().await.in_parts_of(1 << 20);
    rig.push(&client).await.unwrap();
    let asked = server.asked();
    let for_scope = |scope: &str| asked.iter().filter(|asked| asked.query.contains(scope)).count();
    assert_eq!((asked.len(), for_scope(SCOPE)), (2, 1), "{asked:?}");
    assert!(asked.iter().all(|asked| asked.query.contains("service=r")), "{asked:?}");
    assert!(asked.iter().all(|asked| asked.authorization.is_none()), "anonymous");
    assert!(double.received() < rig.layer.size + 1000, "no content met a challenge");
}

#[tokio::test]
async fn an_old_token_is_renewed_before_it_is_used() {
    // Old at once.
    let (double, server, rig) = rig(Manners { life: 0, ..Manners::default() }).await;
    let client = rig.client().await.in_parts_of(1 << 20);
    client
        .upload_file("team/checkpoints", &rig.folder.path().join("checkpoint.tar"))
        .await
        .unwrap();
    assert_eq!(server.asked().len(), 1 + double.parts().len() + 1, "POST, parts, PUT");
    assert_eq!(double.received(), rig.layer.size, "no content met a challenge");
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_is_replaced() {
    let (double, server, rig) = rig(Manners::default()).await;
    let client = rig.client().await.in_parts_of(1 << 20);
    let archive = rig.folder.path().join("checkpoint.tar");
    double.misbehave([Fault::Expired]);
    assert_eq!(client.upload_file("team/checkpoints", &archive).await.unwrap(), rig.layer);
    assert_eq!((server.asked().len(), double.begun()), (2, 1));
    assert_eq!(double.received(), rig.layer.size + (1 << 20), "one part twice");

    server.revoke();
    client.may_push("team/checkpoints").await.unwrap();
}

#[tokio::test]
async fn no_redirect_takes_credentials_elsewhere() {
    let other = TokenServer::start(Manners::default()).await;
    let elsewhere = Some(format!("http://{}/token", other.address));
    let (_double, server, rig) = rig(Manners { redirect: elsewhere, ..wanting() }).await;
    let client = rig.client_with(secret()).await.unwrap();
    let error = client.may_push("team/checkpoints").await.unwrap_err().to_string();
    assert!(error.contains("get a token from 127.0.0.1") && error.contains("307"), "{error}");
    assert_eq!(server.asked()[0].authorization.as_deref(), Some(BASIC));
    assert_eq!(other.asked(), []);
}

#[tokio::test]
async fn a_realm_that_must_not_be_asked_is_not() {
    let other = TokenServer::start(Manners::default()).await;
    // 192.0.2.1 is nobody's: if it were asked, this would take long.
    for realm in ["http://192.0.2.1/token", "nowhere", "ftp://127.0.0.1/"] {
        let realm = Some(realm.to_owned());
        let (_double, server, rig) = rig(Manners { realm, ..Manners::default() }).await;
        let error = rig.client_with(None).await.err().unwrap();
        assert!(matches!(error, Error::Token { .. }), "{error}");
        assert_eq!((server.asked().len(), other.asked().len()), (0, 0));
    }
}

#[tokio::test]
async fn an_upload_elsewhere_gets_no_token_and_asks_for_none() {
    let bait = TokenServer::start(Manners::default()).await;
    let other = Double::start(Lock::Tokens(bait.clone())).await;
    let (double, _server, rig) = rig(wanting()).await;
    let client = rig.client_with(secret()).await.unwrap();
    client.may_push("team/checkpoints").await.unwrap();
    double.misbehave([Fault::Elsewhere(format!("http://{}/v2/r/blobs/uploads/7", other.address))]);
    let error = rig.failure(&client).await;
    assert!(error.contains("can't be used with these credentials"), "{error}");
    assert_eq!(bait.asked(), [], "its challenge is not ours to answer");
}
