//! Uploads in parts, and those that break off.

use super::*;
use crate::double::Habits;

const REPOSITORY: &str = "team/checkpoints";
const PART: u64 = 1 << 20;

async fn rig(habits: Habits) -> (Double, Rig, Client) {
    let double = Double::start_with(Lock::Open, habits).await;
    let rig = Rig::before(double.address).await;
    let client = rig.client().await.in_parts_of(PART);
    (double, rig, client)
}

fn archive(rig: &Rig) -> std::path::PathBuf {
    rig.folder.path().join("checkpoint.tar")
}

/// The parts that a whole upload has.
fn parts(size: u64, part: u64) -> Vec<u64> {
    let mut parts = vec![part; usize::try_from(size / part).unwrap()];
    parts.extend(Some(size % part).filter(|last| *last > 0));
    parts
}

#[tokio::test]
async fn a_long_file_goes_in_parts() {
    let (double, rig, client) = rig(Habits::default()).await;
    let blob = client.upload_file(REPOSITORY, &archive(&rig)).await.unwrap();
    assert_eq!(blob, rig.layer);
    assert_eq!(double.parts(), parts(blob.size, PART));
    assert!(double.parts().len() > 3);
}

#[tokio::test]
async fn a_part_that_breaks_off_is_gone_on_with() {
    for breaks in [1, 3, 9] {
        let (double, rig, client) = rig(Habits::default()).await;
        rig.proxy.break_off(breaks);
        rig.proxy.sent();
        assert_eq!(client.upload_file(REPOSITORY, &archive(&rig)).await.unwrap(), rig.layer);
        assert_eq!((rig.proxy.to_break(), double.begun()), (0, 1), "one upload");
        let sent = rig.proxy.sent();
        assert!(sent > rig.layer.size && sent < rig.layer.size + PART, "{sent} bytes sent");
        assert_eq!(double.received(), rig.layer.size, "nothing arrived twice");
    }
}

#[tokio::test]
async fn docker_registry_begins_again_when_a_part_breaks_off() {
    let Some(registry) = Real::start(Kind::Open, |_| {}) else { return };
    let rig = Rig::before(registry.address).await;
    let client = rig.client().await.in_parts_of(PART);
    rig.proxy.break_off(2);
    assert_eq!(client.upload_file(REPOSITORY, &archive(&rig)).await.unwrap(), rig.layer);
    let kept = std::fs::read(registry.blob(&rig.layer.digest)).unwrap();
    assert_eq!(kept, std::fs::read(archive(&rig)).unwrap());
}

#[tokio::test]
async fn a_forgotten_upload_begins_again() {
    let (double, rig, client) = rig(Habits::default()).await;
    double.misbehave([Fault::Forget]);
    assert_eq!(client.upload_file(REPOSITORY, &archive(&rig)).await.unwrap(), rig.layer);
    assert_eq!(double.begun(), 2);

    // In the middle of a part that breaks off, too.
    rig.proxy.break_off(1);
    double.misbehave([Fault::Upload(StatusCode::BAD_GATEWAY), Fault::Forget]);
    assert_eq!(client.upload_file(REPOSITORY, &archive(&rig)).await.unwrap(), rig.layer);
}

#[tokio::test]
async fn a_registry_that_wants_one_part_gets_one() {
    let (double, rig, client) = rig(Habits { one_part: true, ..Habits::default() }).await;
    assert_eq!(client.upload_file(REPOSITORY, &archive(&rig)).await.unwrap(), rig.layer);
    assert_eq!(double.parts(), [PART, rig.layer.size]);
}

#[tokio::test]
async fn a_registry_that_wants_long_parts_gets_them() {
    let least = PART + 1;
    let (double, rig, client) = rig(Habits { least_part: least, ..Habits::default() }).await;
    assert_eq!(client.upload_file(REPOSITORY, &archive(&rig)).await.unwrap(), rig.layer);
    assert_eq!(double.parts(), parts(rig.layer.size, least));
}

#[tokio::test]
async fn a_finished_upload_whose_answer_got_lost_is_not_repeated() {
    let (double, rig, client) = rig(Habits::default()).await;
    double.misbehave([Fault::Silence]);
    assert_eq!(client.upload_file(REPOSITORY, &archive(&rig)).await.unwrap(), rig.layer);
    assert_eq!((double.begun(), double.received()), (1, rig.layer.size));
}

/// A registry that breaks off again and again without taking anything is given up.
#[tokio::test]
async fn there_is_an_end_to_it() {
    let (double, rig, client) = rig(Habits::default()).await;
    double.misbehave(std::iter::repeat_n(Fault::Upload(StatusCode::BAD_GATEWAY), 100));
    let error = client.upload_file(REPOSITORY, &archive(&rig)).await.unwrap_err();
    assert!(error.to_string().contains("502 Bad Gateway"), "{error}");
    assert_eq!(double.received(), 0);
}

#[tokio::test]
async fn a_file_that_shrinks_is_named() {
    let (_double, rig, client) = rig(Habits::default()).await;
    let path = archive(&rig);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let upload = client.upload_file(REPOSITORY, &path);
    // Shorter once it has been begun: its length was taken then.
    let shrink = async {
        while rig.proxy.peek() < 100_000 {
            tokio::task::yield_now().await;
        }
        file.set_len(2 * PART).unwrap();
    };
    let (error, ()) = tokio::join!(upload, shrink);
    let error = error.unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
    assert!(error.to_string().contains("checkpoint.tar"), "{error}");
}
