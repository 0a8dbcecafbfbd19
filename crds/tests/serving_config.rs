//! The serving config as people meet it: layers, merging, the environment, and what is said of mistakes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;

use ortolan_crds::serving::{
    Channels, ExecutionProvider, Labels, Layer, LogFormat, ModelOptions, Resize, ServingConfig, Task,
    environment_layer, parse, parse_options,
};

fn parsed(layers: &[(&str, &str)]) -> ServingConfig {
    parse(&yaml_layers(layers)).unwrap()
}

fn faults(layers: &[(&str, &str)]) -> Vec<String> {
    parse(&yaml_layers(layers)).unwrap_err().0.iter().map(ToString::to_string).collect()
}

fn yaml_layers(layers: &[(&str, &str)]) -> Vec<Layer> {
    layers.iter().map(|(origin, text)| Layer::yaml(*origin, *text)).collect()
}

fn environment(variables: &[(&str, &str)]) -> Layer {
    environment_layer(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

#[test]
fn nothing_said_gives_the_documented_defaults() {
    let config = parsed(&[("empty.yaml", "")]);
    assert_eq!(config, ServingConfig::default());
    assert_eq!((config.server.port, config.server.grpc_port, config.server.metrics_port), (8080, 8081, 9090));
    assert_eq!(config.server.max_body_bytes, 67_108_864);
    assert_eq!(config.logging.format, LogFormat::Json);
}

#[test]
fn a_model_needs_only_a_name_and_a_path() {
    let config = parsed(&[("m.yaml", "models: [{name: espresso, path: m/espresso}]")]);
    let model = &config.models[0];
    assert_eq!(model.task, Task::Tensor);
    assert_eq!((model.batch_size, model.max_queue_ms, model.queue_size), (8, 500, 1024));
    assert_eq!((model.queue_bytes, model.request_timeout_ms, model.run_timeout_ms), (268_435_456, 30_000, 60_000));
}

#[test]
fn later_files_override_key_by_key_and_models_merge_by_name() {
    let config = parsed(&[
        (
            "base.yaml",
            "server: {port: 1000, metrics_port: 2000}
models:
  - {name: espresso, path: a, batch_size: 4, execution_providers: [cuda, cpu]}
  - {name: tripod, path: b}",
        ),
        (
            "prod.yaml",
            "server: {port: 3000}
models:
  - {name: tripod, batch_size: 16}
  - {name: espresso, execution_providers: [cpu]}
  - {name: cat, path: c}",
        ),
    ]);
    assert_eq!((config.server.port, config.server.metrics_port), (3000, 2000));
    let seen: Vec<_> = config.models.iter().map(|m| (m.name.as_str(), m.path.clone(), m.batch_size)).collect();
    let expected = [("espresso", "a", 4), ("tripod", "b", 16), ("cat", "c", 8)];
    assert_eq!(seen, expected.map(|(name, path, size)| (name, PathBuf::from(path), size)));
    assert_eq!(config.models[0].execution_providers, [ExecutionProvider::Cpu], "other lists are replaced");
}

#[test]
fn null_takes_a_setting_back_to_its_default() {
    let config =
        parsed(&[("a.yaml", "server: {port: 1000, threads: 3}"), ("b.yaml", "server: {port: null, threads: ~}")]);
    assert_eq!((config.server.port, config.server.threads), (8080, None));
}

#[test]
fn null_and_whole_numbers_mean_the_same_wherever_they_stand() {
    let config = parsed(&[(
        "a.yaml",
        "server: {drain_delay_ms: 1e3}
models: [{name: a, path: b, batch_size: null, options: {top_k: ~}}]",
    )]);
    assert_eq!(config.server.drain_delay_ms, 1000);
    assert_eq!((config.models[0].batch_size, config.models[0].options.top_k), (8, None));
}

#[test]
fn nothing_stands_behind_the_cpu() {
    let found = faults(&[("a.yaml", "models: [{name: a, path: b, execution_providers: [cpu, cuda]}]")]);
    assert!(found[0].starts_with("models[a].execution_providers: expected nothing behind cpu"), "{found:?}");
}

#[test]
fn the_environment_comes_last() {
    let layers = [
        Layer::yaml("a.yaml", "server: {port: 1000}\nlogging: {level: warn}"),
        environment(&[
            ("ORTOLAN__SERVER__PORT", "4000"),
            ("ORTOLAN__LOGGING__FORMAT", "plain"),
            ("ORTOLAN__LOGGING__LEVEL", ""),
            ("ORTOLAN_PORT", "tcp://10.0.0.1:80"),
            ("PATH", "/bin"),
        ]),
    ];
    let config = parse(&layers).unwrap();
    assert_eq!(config.server.port, 4000);
    assert_eq!(config.logging.format, LogFormat::Plain);
    assert_eq!(config.logging.level, "warn");
}

#[test]
fn null_in_the_environment_takes_a_setting_back() {
    let file = Layer::yaml("a.yaml", "server: {port: 1000}");
    let config = parse(&[file, environment(&[("ORTOLAN__SERVER__PORT", "null")])]).unwrap();
    assert_eq!(config.server.port, 8080);
}

#[test]
fn the_environment_means_what_a_file_does() {
    let variables = [("ORTOLAN__SERVER__DRAIN_DELAY_MS", "1e3"), ("ORTOLAN__SERVER__HOST", "::")];
    let config = parse(&[environment(&variables)]).unwrap();
    assert_eq!(config.server.drain_delay_ms, 1000);
    assert_eq!(config.server.host.to_string(), "::");
    let found = parse(&[environment(&[("ORTOLAN__LOGGING__LEVEL", "warning")])]).unwrap_err().to_string();
    assert!(found.contains("got warning (environment)"), "{found}");
}

#[test]
fn an_address_that_is_none_is_told_with_all_other_faults() {
    let found = faults(&[("a.yaml", "server: {host: localhost, port: x}")]);
    assert_eq!(found.len(), 2, "{found:?}");
    let expected = "server.host: expected an IP address, for example 0.0.0.0 or 127.0.0.1, got \"localhost\" (a.yaml)";
    assert_eq!(found[0], expected);
}

#[test]
fn a_word_that_is_no_level_is_no_filter_either() {
    for level in ["info", "WARN", "off", "info,inference_pod::queue=debug", "hyper=debug", "inference_pod::queue"] {
        parsed(&[("a.yaml", &format!("logging: {{level: '{level}'}}"))]);
    }
    for level in ["warning", "verbose", "info,queue", ",", "inf"] {
        let found = faults(&[("a.yaml", &format!("logging: {{level: '{level}'}}"))]);
        assert!(found[0].starts_with("logging.level: expected a level (off, error, warn,"), "{level}: {found:?}");
    }
}

#[test]
fn every_fault_is_reported_at_once_with_its_path_and_layer() {
    let found = faults(&[
        ("base.yaml", "server: {port: 99999, hots: 0.0.0.0}\nlogging: {format: xml}"),
        (
            "dev.yaml",
            "models:
  - {name: espresso, path: m, batch_size: eight, task: image-clasification}
  - {name: tripod}
  - {name: cat, path: c, max_queue_ms: 0, options: {top_k: 0, image: {crpo: 3}}}",
        ),
    ]);
    let expected = [
        "logging.format: expected one of json, plain, got \"xml\" (base.yaml)",
        "models[cat].max_queue_ms: expected at least 1, got 0 (dev.yaml)",
        "models[cat].options.image.crpo: unknown key `crpo`; known are channels, crop, layout, mean, resize, std (dev.yaml)",
        "models[cat].options.top_k: expected at least 1, got 0 (dev.yaml)",
        "models[espresso].batch_size: expected integer, got \"eight\" (dev.yaml)",
        "models[tripod].path: required, but missing",
        "server.port: expected at most 65535, got 99999 (base.yaml)",
    ];
    for line in expected {
        assert!(found.contains(&line.to_owned()), "expected {line:?} among {found:#?}");
    }
    let task = found.iter().find(|line| line.starts_with("models[espresso].task")).unwrap();
    assert!(task.contains("image-classification") && task.contains("got \"image-clasification\""), "{task}");
    let unknown = found.iter().find(|line| line.starts_with("server.hots")).unwrap();
    assert!(unknown.contains("unknown key `hots`; known are drain_delay_ms"), "{unknown}");
    assert_eq!(found.len(), expected.len() + 2, "{found:#?}");
}

#[test]
fn settings_that_do_not_go_together_are_named() {
    let found = faults(&[(
        "a.yaml",
        "server: {port: 9090}
models:
  - {name: espresso, path: a, batch_size: 32, queue_size: 16}
  - {name: espresso, path: b}
  - {name: .., path: c}
  - {name: tea, path: d, options: {top_k: 3, image: {crop: 3}}}
  - {name: cup, path: e, task: image-classification, options: {top_k: 3, image: {crop: 3}}}",
    )]);
    assert_eq!(
        found,
        [
            "server.metrics_port: expected a port of its own, got 9090, which server.port has",
            "models[espresso].queue_size: expected at least batch_size (32), got 16 (a.yaml)",
            "models[espresso]: name comes twice; each name once (a.yaml)",
            "models[..].name: expected a name that a URL can have, got .. (a.yaml)",
            "models[tea].options.image: expected only with task image-classification, got task tensor (a.yaml)",
            "models[tea].options.top_k: expected only with task image-classification, got task tensor (a.yaml)",
        ]
    );
}

#[test]
fn a_name_that_comes_twice_in_a_later_file_is_named_too() {
    let found = faults(&[
        ("base.yaml", "models: [{name: espresso, path: a}]"),
        ("dev.yaml", "models: [{name: espresso, path: b}, {name: espresso, path: c}]"),
    ]);
    assert_eq!(found, ["models[espresso]: name comes twice; each name once (dev.yaml)"]);
}

#[test]
fn a_fault_of_a_model_with_a_dot_in_its_name_has_its_file() {
    let found = faults(&[
        ("base.yaml", "models: [{name: bge-small-v1.5, path: a, batch_size: eight, options: {warmup: {x: 1}}}]"),
        ("dev.yaml", "models: [{name: espresso, path: b}]"),
    ]);
    assert!(found.len() > 1 && found.iter().all(|line| line.ends_with("(base.yaml)")), "{found:#?}");
}

#[test]
fn a_setting_that_is_not_built_is_refused_rather_than_ignored() {
    let found = faults(&[(
        "a.yaml",
        "server: {rate_limit: {per_second: 1, burst: 1, by: token}, model_control: poll}
models: [{name: mini, path: a, task: text-embedding, options: {versions: {policy: all}}}]",
    )]);
    let paths: Vec<_> = found.iter().filter_map(|line| line.split_once(": not built yet")).map(|(p, _)| p).collect();
    assert_eq!(
        paths,
        ["server.rate_limit", "server.model_control", "models[mini].task", "models[mini].options.versions",]
    );
}

#[test]
fn text_that_is_no_yaml_says_where() {
    let found = faults(&[("good.yaml", "server: {}"), ("bad.yaml", "server: {port: 1"), ("list.yaml", "- a")]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("bad.yaml") && found[0].contains("line 1"), "{found:#?}");
    assert_eq!(found[1], "expected a mapping of settings, got a list ([\"a\"]) (list.yaml)");
}

#[test]
fn the_environment_speaks_for_the_process_only() {
    let error =
        parse(&[environment(&[("ORTOLAN__MODELS__ESPRESSO", "x"), ("ORTOLAN__SERVER__PROT", "1")])]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("models: cannot be set by environment variables"), "{text}");
    assert!(text.contains("server.prot: unknown key `prot`") && text.contains("(environment)"), "{text}");
}

#[test]
fn model_yaml_is_overridden_by_the_config() {
    let file = Layer::yaml(
        "m/model.yaml",
        "image: {resize: 256, crop: 224, channels: bgr, mean: [0.4, 0.5, 0.6], std: [1, 1, 1]}\ntop_k: 3\nlabels: names.txt",
    );
    let over = ModelOptions { top_k: Some(1), ..ModelOptions::default() };
    let options = parse_options(&file, &over).unwrap();
    assert_eq!(options.image.resize, Some(Resize::ShorterSide(256)));
    assert_eq!(options.image.channels, Some(Channels::Bgr));
    assert_eq!(options.labels, Some(Labels::File(PathBuf::from("names.txt"))));
    assert_eq!(options.top_k, Some(1));

    let stretched = parse_options(&Layer::yaml("x", "image: {resize: [320, 240]}"), &ModelOptions::default()).unwrap();
    assert_eq!(stretched.image.resize, Some(Resize::Stretch([320, 240])));
}

#[test]
fn a_broken_model_yaml_is_named() {
    let file = Layer::yaml("m/model.yaml", "image: {resize: big, mean: [0.1], std: [0.1, 0.0]}\nsoftmx: true");
    let text = parse_options(&file, &ModelOptions::default()).unwrap_err().to_string();
    for part in ["image.resize: expected", "image.std", "softmx: unknown key `softmx`", "(m/model.yaml)"] {
        assert!(text.contains(part), "expected {part:?} in {text}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let config = parsed(&[(
        "a.yaml",
        "models: [{name: a, path: b, task: image-classification, options: {labels: [x, y], image: {resize: 3}}}]",
    )]);
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(parsed(&[("json is yaml", &text)]), config);
}
