use super::*;
use crate::error::ErrorKind;

#[test]
fn no_secret_is_shown() {
    let mut config = ServerConfig::default();
    config.turn.secret = Some("s3cret".into());
    config.access.hook.url = Some("https://u:s3cret@a.example/x?s3cret".into());
    config.reputation.url = Some("https://a.example/x#s3cret".into());
    let texts = [
        format!("{config:?}"),
        serde_json::to_string(&config.without_secrets()).unwrap(),
    ];
    for text in texts {
        assert!(!text.contains("s3cret"), "{text}");
        assert!(text.contains("a.example"), "{text}");
    }
}

#[test]
fn the_documented_defaults() {
    let config: ServerConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(config, ServerConfig::default());
    assert_eq!(config.port, 4001);
    assert_eq!(config.relay.circuits_per_peer.get(), 16);
    assert_eq!(config.relay.circuit_bytes, 0);
    assert_eq!(config.connections.idle_seconds, 30);
    config.validate().unwrap();
}

#[test]
fn debug_hides_the_secret() {
    let turn = TurnConfig {
        secret: Some("hunter2".into()),
        ..TurnConfig::default()
    };
    assert!(!format!("{turn:?}").contains("hunter2"));
}

#[test]
fn a_mistyped_name_is_refused_by_name() {
    let error = serde_json::from_str::<ServerConfig>(r#"{"relay":{"circuit":1}}"#)
        .unwrap_err()
        .to_string();
    assert!(error.contains("`circuit`"), "{error}");
}

#[test]
fn ranges_are_checked_at_their_edges() {
    let with = |edit: fn(&mut ServerConfig)| {
        let mut config = ServerConfig::default();
        edit(&mut config);
        config.validate()
    };
    let refused = |field: &str, edit: fn(&mut ServerConfig)| {
        let error = with(edit).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.message().starts_with(field), "{error}");
    };
    refused("hosts", |c| c.hosts.clear());
    with(|c| c.port = 65531).unwrap();
    refused("port", |c| c.port = 65532);
    with(|c| c.turn.first_port = 65535).unwrap();
    refused("turn.first_port", |c| c.turn.last_port = 49_151);
    refused("turn.external_ip", |c| {
        c.turn.external_ip = Some("0.0.0.0".parse().unwrap())
    });
    refused("turn.secret", |c| c.turn.secret = Some(String::new()));
    refused("turn.realm", |c| c.turn.realm = "a\r\n".into());
    refused("turn.credential_seconds", |c| {
        c.turn.credential_seconds = 59
    });
    with(|c| c.turn.bytes_total = 16_384).unwrap();
    refused("turn.bytes_total", |c| c.turn.bytes_total = 16_383);
    refused("turn.bytes_per_source", |c| {
        c.turn.bytes_per_source = 1_000_000_000_001
    });
    refused("connections.established", |c| c.connections.established = 0);
    let error = with(|c| c.connections.established = 0).unwrap_err();
    let told = "connections.established: 0 is not within 1 to 4294967295 connections";
    assert_eq!(error.message(), told);
    refused("connections.per_peer", |c| c.connections.per_peer = 0);
    refused("connections.pending", |c| c.connections.pending = 0);
    with(|c| c.connections.idle_seconds = 86_400).unwrap();
    for seconds in [0, 86_401, u64::MAX] {
        let mut config = ServerConfig::default();
        config.connections.idle_seconds = seconds;
        let error = config.validate().unwrap_err();
        assert!(error.message().starts_with("connections.idle_seconds"));
    }
    refused("connections.share_per_address", |c| {
        c.connections.share_per_address = 0
    });
    refused("connections.share_per_address", |c| {
        c.connections.share_per_address = 101
    });
    with(|c| c.relay.reservation_seconds = 180).unwrap();
    refused("relay.reservation_seconds", |c| {
        c.relay.reservation_seconds = 179
    });
    with(|c| c.http.trusted_proxies = vec!["::1".into(), "10.0.0.0/8".into()]).unwrap();
    refused("http.trusted_proxies", |c| {
        c.http.trusted_proxies = vec!["proxy".into()]
    });
    with(|c| c.connections.window = 65_536).unwrap();
    refused("connections.window", |c| c.connections.window = 65_535);
    with(|c| c.relay.circuit_window = 262_144).unwrap();
    refused("relay.circuit_window", |c| c.relay.circuit_window = 262_143);
    refused("relay.circuit_window", |c| {
        c.relay.circuit_window = 16_777_217
    });
    with(|c| c.relay.circuit_seconds = 0).unwrap();
    refused("relay.circuit_seconds", |c| {
        c.relay.circuit_seconds = 1 << 32
    });
}

#[test]
fn tls_has_one_source_and_a_place_to_keep_what_it_gets() {
    let with = |edit: fn(&mut TlsConfig)| {
        let mut config = ServerConfig {
            data: Some("data".into()),
            ..ServerConfig::default()
        };
        edit(&mut config.tls);
        config
    };
    let refused = |field: &str, edit: fn(&mut TlsConfig)| {
        let error = with(edit).validate().unwrap_err();
        assert!(error.message().starts_with(field), "{error}");
    };
    refused("tls.key", |tls| tls.cert = Some("c".into()));
    refused("tls.cert", |tls| tls.key = Some("k".into()));
    refused("tls.domains", |tls| {
        tls.cert = Some("c".into());
        tls.key = Some("k".into());
        tls.domains = vec!["a.example".into()];
    });
    refused("tls.domains: `*.example`", |tls| {
        tls.domains = vec!["*.example".into()]
    });
    refused("tls.contact", |tls| tls.contact = Some("nobody".into()));
    refused("tls.directory", |tls| {
        tls.directory = "http://a.example".into()
    });
    let both = with(|tls| tls.domains = vec!["a.example".into(), "192.0.2.1".into()]);
    both.validate().unwrap();
    let nowhere = ServerConfig { data: None, ..both };
    assert!(
        nowhere
            .validate()
            .unwrap_err()
            .message()
            .starts_with("data")
    );
}

#[test]
fn no_circuit_duration_is_the_longest() {
    let limits = RelayLimits {
        circuit_seconds: 0,
        ..RelayLimits::default()
    };
    assert_eq!(limits.circuit_duration().as_secs(), u64::from(u32::MAX));
}
