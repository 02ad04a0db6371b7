use super::*;
use crate::Identity;

#[test]
fn defaults_are_valid_and_round_trip_through_json() {
    let config = Config::default();
    config.validate().unwrap();
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    assert_eq!(serde_json::from_str::<Config>("{}").unwrap(), config);
}

/// This lists the value of every default. Add a new field here, too.
#[test]
fn defaults_have_the_documented_values() {
    let promised = serde_json::json!({
        "relays": [],
        "reserve": true,
        "relay_reservations": 2,
        "relay_tokens": null,
        "stun": [],
        "turn": [],
        "listen": [],
        "protocols": [],
        "direct": true,
        "dial_private": true,
        "connect_timeout_ms": 10_000,
        "strategy_timeout_ms": 10_000,
        "start_delays_ms": {
            "direct": 0, "stun": 0, "upnp": 0, "circuit_relay": 0, "turn": 1_000, "birthday": 1_000,
        },
        "acceptance_delay_ms": 0,
        "relay_timeout_ms": 10_000,
        "stun_timeout_ms": 5_000,
        "upgrade_tries": 3,
        "upgrade_backoff_ms": 2_000,
        "resume_timeout_ms": 120_000,
        "probe_interval_ms": 5_000,
        "probe_timeout_ms": 1_000,
        "idle_timeout_ms": 30_000,
        "circuit_idle_timeout_ms": 60_000,
        "stream_window": 4_194_304,
        "max_circuits": 16,
        "autonat_retry_ms": 30_000,
        "directory": true,
        "mdns": true,
        "lan_discovery": false,
        "birthday": true,
        "birthday_sockets": 256,
        "birthday_probes": 1024,
        "birthday_rate": 100,
        "port_mapping": true,
        "port_mapping_timeout_ms": 5_000,
        "turn_ca": null,
        "relay_ca": null,
        "max_connections": 1024,
        "max_streams": 1024,
    });
    assert_eq!(serde_json::to_value(Config::default()).unwrap(), promised);
}

#[test]
fn every_field_can_be_set_by_its_name() {
    let serde_json::Value::Object(all) = serde_json::to_value(Config::default()).unwrap() else {
        unreachable!()
    };
    for (name, value) in all {
        let other = match &value {
            serde_json::Value::Bool(value) => serde_json::json!(!value),
            serde_json::Value::Number(value) => {
                serde_json::json!(value.as_u64().unwrap() + 1)
            }
            serde_json::Value::Object(_) => serde_json::json!({"turn": 7}),
            serde_json::Value::Null => serde_json::json!("ca.pem"),
            _ if name == "turn" => {
                serde_json::json!([{"url": "turn:h", "username": "u", "credential": "c"}])
            }
            _ => serde_json::json!(["x"]),
        };
        let json = serde_json::json!({ &name: &other });
        let config: Config = serde_json::from_value(json).unwrap();
        assert_ne!(config, Config::default(), "{name}");
    }
    let config: Config =
        serde_json::from_str(r#"{"start_delays_ms": {"circuit_relay": 7}}"#).unwrap();
    assert_eq!(config.start_delays.circuit_relay, Duration::from_millis(7));
    assert_eq!(
        config.start_delays.birthday,
        crate::core::delays::BIRTHDAY_START
    );
}

#[test]
fn unknown_names_are_refused() {
    let error = serde_json::from_str::<Config>(r#"{"conect_timeout_ms": 250}"#).unwrap_err();
    assert!(error.to_string().contains("conect_timeout_ms"));
}

#[test]
fn ranges_hold_at_their_edges() {
    let with = |f: fn(&mut Config)| {
        let mut config = Config::default();
        f(&mut config);
        config.validate()
    };
    with(|c| c.connect_timeout = Duration::from_millis(100)).unwrap();
    let error = with(|c| c.connect_timeout = Duration::from_millis(99)).unwrap_err();
    assert!(error.message().starts_with("connect_timeout_ms"));
    with(|c| c.start_delays.turn = Duration::from_secs(60)).unwrap();
    let error = with(|c| c.start_delays.turn = Duration::from_millis(60_001)).unwrap_err();
    let told = "start_delays_ms.turn: 60001 is not within 0 to 60000 ms";
    assert_eq!(error.message(), told);
    let error = with(|c| c.max_circuits = 0).unwrap_err();
    let told = "max_circuits: 0 is not within 1 to 1024 circuits";
    assert_eq!(error.message(), told);
    with(|c| c.stream_window = 64 << 20).unwrap();
    with(|c| c.stream_window = (64 << 20) + 1).unwrap_err();
    let error = with(|c| c.relays = vec!["/ip4/192.0.2.1/tcp/1".into()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidAddress);
    let path = "/ip4/192.0.2.1/tcp/1/x-parity-ws/%2f%0d%0a";
    let error = with(|c| c.listen = vec!["/ip4/192.0.2.1/tcp/1/x-parity-ws/%2f%0d%0a".into()]);
    assert!(error.unwrap_err().message().contains(path));
    with(|c| c.stun = vec!["192.0.2.1".into()]).unwrap_err();
    with(|c| c.stun = vec!["stuns:192.0.2.1".into()]).unwrap_err();
    with(|c| c.port_mapping_timeout = Duration::from_secs(60)).unwrap();
    with(|c| c.port_mapping_timeout = Duration::from_secs(61)).unwrap_err();
    with(|c| c.protocols = vec![String::new()]).unwrap_err();
}

#[test]
fn relays_and_addresses_of_relays_have_limits() {
    let with = |relays: usize, addresses: usize| {
        let ids: Vec<_> = (0..relays)
            .map(|_| Identity::generate().peer_id())
            .collect();
        let address = |at: usize| format!("/ip4/192.0.2.1/tcp/{}/p2p/{}", at + 1, ids[at % relays]);
        let config = Config {
            relays: (0..addresses).map(address).collect(),
            ..Config::default()
        };
        config.validate()
    };
    with(16, 64).unwrap();
    let refused = |relays, addresses, told: &str| {
        let error = with(relays, addresses).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert_eq!(error.message(), told);
    };
    refused(17, 17, "relays: 17 is not within 0 to 16 relays");
    refused(1, 65, "relays: 65 is not within 0 to 64 texts");
}

#[test]
fn debug_hides_the_turn_password() {
    let server = TurnServer {
        url: "turn:192.0.2.1".into(),
        username: "u".into(),
        credential: "hunter2".into(),
    };
    assert!(!format!("{server:?}").contains("hunter2"));
}
