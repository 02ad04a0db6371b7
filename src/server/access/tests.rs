use std::fs;

use super::{turn::TURN_ID, *};
use crate::server::{ServerConfig, config::HookConfig, metrics::Metrics, settings::Settings};

fn rules(edit: impl FnOnce(&mut AccessConfig)) -> Result<Access, Error> {
    let mut config = ServerConfig::default();
    edit(&mut config.access);
    let pools = Pools::new(&Settings::fixed(config.clone()), &Metrics::new(&config));
    Access::new(&config.access, &pools, Calendar::default(), relay())
}

fn relay() -> PeerId {
    let keys = libp2p::identity::Keypair::ed25519_from_bytes([1; 32]).unwrap();
    keys.public().to_peer_id()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn judged(access: &Access, peer: PeerId, token: Option<&str>, now: SystemTime) -> Verdict {
    match access.judge_at(peer, None, token, (What::Reservation, false), now) {
        Judgement::Now(verdict) => verdict,
        Judgement::Later(_) => panic!("no hook is asked"),
    }
}

fn denied(verdict: Verdict) -> Denial {
    verdict.err().expect("it is denied")
}

#[test]
fn everybody_may_use_an_open_server() {
    let access = rules(|_| {}).unwrap();
    let peer = PeerId::random();
    assert!(access.is_open() && !access.is_for_dialers());
    assert!(judged(&access, peer, None, at(0)).is_ok());
    assert!(judged(&access, peer, Some("whatever"), at(0)).is_ok());
    assert!(access.still_admits(&peer));
}

#[test]
fn a_rule_needs_its_settings() {
    for (mode, field) in [
        (AccessMode::List, "access.list"),
        (AccessMode::Token, "access.keys"),
        (AccessMode::Hook, "access.hook.url"),
    ] {
        let error = rules(|access| access.mode = Some(mode)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.message().starts_with(field), "{error}");
    }
    let error = rules(|access| {
        access.mode = Some(AccessMode::List);
        access.list = Some("/nonexistent".into());
    });
    assert!(error.err().unwrap().message().starts_with("access.list"));
}

#[tokio::test(start_paused = true)]
async fn a_list_admits_the_peers_in_its_file() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("peers");
    let (peer, other) = (PeerId::random(), PeerId::random());
    fs::write(&file, format!("# friends\n\n  {peer}\r\nnobody\n")).unwrap();
    let access = rules(|access| {
        access.mode = Some(AccessMode::List);
        access.list = Some(file.clone());
        access.dialers = true;
    });
    let access = access.unwrap();
    assert!(access.is_for_dialers());
    assert!(judged(&access, peer, None, at(0)).is_ok());
    assert_eq!(denied(judged(&access, other, None, at(0))), Denial::Access);
    let user = |id: &dyn std::fmt::Display| access.bars_turn(&format!("99:{id}"));
    assert!(!user(&peer) && user(&other) && !user(&"peer"));
    fs::write(&file, other.to_string()).unwrap();
    access.reload();
    let Rule::List(names) = &access.0.rule else {
        panic!("there is a list");
    };
    names.follow().await;
    assert!(access.still_admits(&other) && !access.still_admits(&peer));
    assert!(user(&peer));
    // The last list stays when there is none, and while it is being written.
    for half in ["", "\n", &peer.to_string()[..20]] {
        fs::write(&file, half).unwrap();
        access.reload();
        names.follow().await;
        assert!(access.still_admits(&other), "{half:?}");
    }
    fs::remove_file(&file).unwrap();
    access.reload();
    names.follow().await;
    assert!(access.still_admits(&other));
    fs::write(&file, "# nobody\n").unwrap();
    access.reload();
    names.follow().await;
    assert!(!access.still_admits(&other));
}

#[tokio::test]
async fn a_token_admits_until_it_expires_or_is_revoked() {
    let home = tempfile::tempdir().unwrap();
    let key = TokenKey::load_or_create(home.path().join("key.pem")).unwrap();
    let revoked = home.path().join("revoked");
    fs::write(&revoked, "").unwrap();
    let access = rules(|access| {
        access.mode = Some(AccessMode::Token);
        access.keys = vec![key.public()];
        access.revoked = Some(revoked.clone());
    });
    let access = access.unwrap();
    let peer = PeerId::random();
    let now = SystemTime::now();
    assert_eq!(denied(judged(&access, peer, None, now)), Denial::Access);
    let minute = Duration::from_secs(60);
    let token = key.sign(&NewToken::new("alice", minute)).unwrap();
    let grant = judged(&access, peer, Some(&token), now).ok().unwrap();
    assert!(grant.lasts().is_some_and(|lasts| lasts <= minute));
    // A renewal needs no token.
    assert!(judged(&access, peer, None, now).is_ok());
    let late = now + 2 * minute;
    assert_eq!(denied(judged(&access, peer, None, late)), Denial::Access);
    assert!(access.still_admits_at(&peer, now) && !access.still_admits_at(&peer, late));
    let username = format!("99:{}", access.turn_id(&peer, &grant));
    assert!(!access.bars_turn(&username));
    fs::write(&revoked, grant.id.clone().unwrap()).unwrap();
    access.reload();
    access.revoked().unwrap().follow().await;
    assert!(!access.still_admits_at(&peer, now) && access.bars_turn(&username));
    let again = judged(&access, peer, Some(&token), now);
    assert_eq!(denied(again), Denial::Access);
    // A token that is refused takes what another one gave.
    let fresh = key.sign(&NewToken::new("alice", minute)).unwrap();
    assert!(judged(&access, peer, Some(&fresh), now).is_ok());
    assert!(access.is_verified(&peer, Some(&fresh)) && access.is_verified(&peer, None));
    assert!(
        !access.is_verified(&peer, Some("forged")),
        "that costs a signature"
    );
    assert!(
        !access.is_verified(&relay(), Some(&fresh)),
        "it may be for another peer"
    );
    assert!(judged(&access, peer, Some(&fresh), now).is_ok());
    assert!(judged(&access, peer, Some("forged"), now).is_err());
    assert!(judged(&access, peer, None, now).is_err());
    assert!(judged(&access, peer, Some(&fresh), now).is_ok());
    access.forget(&peer);
    assert!(judged(&access, peer, None, now).is_err());
}

#[test]
fn a_token_whose_quota_is_used_up_admits_nobody() {
    let home = tempfile::tempdir().unwrap();
    let key = TokenKey::load_or_create(home.path().join("key.pem")).unwrap();
    let access = rules(|access| {
        access.mode = Some(AccessMode::Token);
        access.keys = vec![key.public()];
    });
    let access = access.unwrap();
    let (peer, other) = (PeerId::random(), PeerId::random());
    let mut new = NewToken::new("alice", Duration::from_secs(60));
    new.quota = Some("10B/day".into());
    let token = key.sign(&new).unwrap();
    let now = SystemTime::now();
    assert!(judged(&access, peer, Some(&token), now).is_ok());
    let [of_dialler, of_peer] = access.meters_of(peer, other).unwrap();
    assert_eq!((of_dialler.len(), of_peer.len()), (1, 0));
    of_dialler[0].carry(11).unwrap();
    assert!(matches!(
        access.meters_of(other, peer),
        Err(Denial::Quota(_))
    ));
    let again = judged(&access, other, Some(&token), now);
    assert!(matches!(denied(again), Denial::Quota(ends) if ends > Duration::ZERO));
}

#[tokio::test]
async fn a_hook_that_never_answered_refuses_for_now() {
    let hook = HookConfig {
        url: Some("http://127.0.0.1:1/".into()),
        ..HookConfig::default()
    };
    let access = rules(|access| {
        access.mode = Some(AccessMode::Hook);
        access.hook = hook;
    });
    let access = access.unwrap();
    // Nobody listens there, and nothing is known of the peer.
    let verdict = access.judge_at(PeerId::random(), None, None, (What::Turn, true), at(0));
    let Judgement::Later(verdict) = verdict else {
        panic!("the hook is asked");
    };
    assert_eq!(denied(verdict.await), Denial::Limit);
}

#[test]
fn a_user_of_turn_is_a_peer_or_has_a_name() {
    let access = rules(|_| {}).unwrap();
    let account = |username: &str| access.turn_account(username).peer;
    let peer = relay().to_string();
    assert_eq!(account(&format!("1796083200:{peer}")), peer);
    assert_eq!(account(&format!("1796083200:{peer}{TURN_ID}abc")), peer);
    assert_eq!(account("1796083200:alice"), "turn:alice");
}
