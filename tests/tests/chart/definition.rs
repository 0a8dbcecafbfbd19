//! The definition of `InferenceModel` in its chart.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{OLDEST_KUBERNETES, crds_chart, helm, is_update, objects, of_kind, repository, template};

const FILE: &str = "files/inferencemodels.ortolan.dev.yaml";

fn generated() -> String {
    fs::read_to_string(repository().join("crds/generated/inferencemodels.ortolan.dev.yaml")).unwrap()
}

pub(crate) fn is_the_generated_one() {
    let generated = generated();
    let file = crds_chart().join(FILE);
    if is_update() {
        fs::write(&file, &generated).unwrap();
    }
    assert!(fs::read_to_string(&file).unwrap() == generated, "the chart's copy is stale; write it anew with UPDATE=1");

    let rendered = objects(&template(&[]).unwrap());
    let [rendered] = of_kind(&rendered, "CustomResourceDefinition")[..] else { panic!("not one definition") };
    let mut expected: Value = serde_saphyr::from_str(&generated).unwrap();
    expected["metadata"]["annotations"] = json!({"helm.sh/resource-policy": "keep"});
    assert!(*rendered == expected, "Helm renders the definition differently");
    assert!(!template(&["--set", "crds.install=false"]).unwrap().contains("CustomResourceDefinition"));
}

pub(crate) fn keeps_braces() {
    let copy = std::env::temp_dir().join(format!("ortolan-crds-{}", std::process::id()));
    copy_folder(&crds_chart(), &copy);
    let texts = "An {{ .Values.answer }} or {{- end }} or {{ \"{{\" }}";
    let changed = generated().replace("ONNX models to serve, and how.", &format!("'{texts}'"));
    assert!(changed.contains(texts), "the generated definition lacks the text that this test changes");
    fs::write(copy.join(FILE), changed).unwrap();
    let rendered = helm(&["template", "crds", &copy.display().to_string(), "--kube-version", OLDEST_KUBERNETES]);
    fs::remove_dir_all(&copy).unwrap();
    assert!(rendered.unwrap().contains(texts));
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
        }
    }
}
