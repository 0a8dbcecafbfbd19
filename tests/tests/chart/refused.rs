//! What the chart refuses, before anything reaches a cluster.

use crate::{chart, helm, template};

pub(crate) fn values() {
    let digest_too_short = "image.digest=sha256:0123";
    let cases: &[(&[&str], &str)] = &[
        (&["replica=2"], "additional properties 'replica' not allowed"),
        (&["image.name=x"], "at '/image': additional properties 'name' not allowed"),
        (&["podImageCuda.pullPolicy=Always"], "at '/podImageCuda': additional properties 'pullPolicy' not allowed"),
        (&["ortolan-crds.install=false"], "additional properties 'install' not allowed"),
        (&["replicas=two"], "at '/replicas': got string, want integer"),
        (&["replicas=-1"], "at '/replicas': minimum: got -1, want 0"),
        (&["logFormat=xml"], "at '/logFormat': value must be one of 'json', 'plain'"),
        (&["image.pullPolicy=Sometimes"], "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        (&["watchNamespace=Shop"], "at '/watchNamespace': 'Shop' does not match pattern"),
        (&[digest_too_short], "at '/image/digest': 'sha256:0123' does not match pattern"),
        (&["podImage.tag=a/b"], "at '/podImage/tag': 'a/b' does not match pattern"),
        (&["resources.memory=1Gi"], "at '/resources': additional properties 'memory' not allowed"),
        (&["prometheus.url=prometheus:9090"], "at '/prometheus/url': 'prometheus:9090' does not match pattern"),
        (&["tracing.endpoint=collector:4318"], "at '/tracing/endpoint': 'collector:4318' does not match pattern"),
        (&["tracing.sample=2"], "at '/tracing/sample': maximum: got 2, want 1"),
        (&["tracing.env[0].name=LOG_LEVEL"], "at '/tracing/env/0/name': 'LOG_LEVEL' does not match pattern"),
        (&["monitoring.labels.release=a/b"], "at '/monitoring/labels/release': 'a/b' does not match pattern"),
        (&["monitoring.labels.re lease=a"], "at '/monitoring/labels': additional properties 're lease' not allowed"),
        (&["monitoring.labels.ortolan\\.dev/scraped=no"], "at '/monitoring/labels/ortolan.dev~1scraped': false schema"),
        (&["crds.install=maybe"], "at '/crds/install': got string, want boolean"),
        (&["serviceAccount.create=false"], "serviceAccount.name is needed where serviceAccount.create is false"),
        // All faults are told at once.
        (&["logFormat=xml", "replicas=two"], "at '/replicas': got string, want integer"),
        (&["logFormat=xml", "replicas=two"], "at '/logFormat': value must be one of 'json', 'plain'"),
    ];
    for (settings, sentence) in cases {
        let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let said = template(&arguments).expect_err(sentence);
        assert!(said.contains(sentence), "{settings:?}: {said}");
    }
}

pub(crate) fn older_kubernetes() {
    let chart = chart().display().to_string();
    let said = helm(&["template", "ortolan", &chart, "--kube-version", "1.32.9"]).unwrap_err();
    assert!(said.contains("chart requires kubeVersion: >=1.33.0-0"), "{said}");
}
