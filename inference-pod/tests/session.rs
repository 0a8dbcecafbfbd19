//! Sessions: buffers that are used again, outputs that stay, and one graph for several instances.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::LazyLock;

use crds::serving::{CudaOptions, ExecutionProvider};
use inference_pod::{
    session::{Runtime, Session, SessionError, SessionFactory, SessionSettings, Stacked},
    tensor::{ElementType, Tensor},
};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::load(Some(common::library())).unwrap());

fn factory(model: &str, threads: usize) -> SessionFactory {
    SessionFactory::new(&RUNTIME, &common::model(model).join("model.onnx"), settings(threads))
}

fn settings(threads: usize) -> SessionSettings {
    SessionSettings { threads, spinning: false, providers: Vec::new(), cuda: CudaOptions::default() }
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Runs `tiny`, which doubles rows of four, on parts of whole rows.
fn double(session: &mut Session, parts: &[Vec<f32>]) -> Tensor {
    let rows = parts.iter().map(Vec::len).sum::<usize>() / 4;
    let parts: Vec<Vec<u8>> = parts.iter().map(|part| bytes(part)).collect();
    let parts = parts.iter().map(Vec::as_slice).collect();
    let mut outputs = session.run(&[Stacked { element: ElementType::F32, shape: vec![rows, 4], parts }]).unwrap();
    assert_eq!(outputs.len(), 1);
    outputs.remove(0)
}

fn row(first: f32) -> Vec<f32> {
    (0..4).map(|at| first + at as f32).collect()
}

fn doubled(rows: &[f32]) -> Vec<f32> {
    rows.iter().flat_map(|first| row(*first)).map(|number| 2.0 * number).collect()
}

#[test]
fn batches_that_grow_and_shrink_use_the_same_buffer_and_get_their_own_numbers() {
    let mut session = factory("tiny", 1).open().unwrap();
    for rows in [1_usize, 8, 2, 3000, 1, 5000, 8, 8, 1] {
        let firsts: Vec<f32> = (0..rows).map(|at| (at + rows) as f32).collect();
        let parts: Vec<Vec<f32>> = firsts.iter().map(|first| row(*first)).collect();
        let output = double(&mut session, &parts);
        assert_eq!(output.shape(), [rows, 4]);
        assert_eq!(output.to_f32(), doubled(&firsts));
    }
}

#[test]
fn parts_of_several_rows_lie_behind_one_another() {
    let mut session = factory("tiny", 1).open().unwrap();
    let output = double(&mut session, &[[row(1.0), row(2.0)].concat(), row(3.0)]);
    assert_eq!(output.to_f32(), doubled(&[1.0, 2.0, 3.0]));
}

#[test]
fn outputs_stay_as_they_are_when_the_session_runs_on_and_when_it_is_gone() {
    let mut session = factory("tiny", 1).open().unwrap();
    let outputs: Vec<Tensor> = (0..50).map(|first| double(&mut session, &[row(first as f32), row(0.5)])).collect();
    drop(session);
    for (first, output) in outputs.iter().enumerate() {
        assert_eq!(output.to_f32(), doubled(&[first as f32, 0.5]));
    }
}

/// A graph with input x and outputs x and y = x + x, all of shape [n, 2] and type FP32.
const ECHO: &[u8] = b"\x08\x08\x12\x00:U\n\x0e\n\x01x\n\x01x\x12\x01y\"\x03Add\x12\x01gZ\x14\n\x01x\x12\x0f\n\r\x08\x01\
    \x12\t\n\x03\x12\x01n\n\x02\x08\x02b\x14\n\x01x\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x02b\x14\n\x01y\x12\x0f\n\r\x08\
    \x01\x12\t\n\x03\x12\x01n\n\x02\x08\x02B\x04\n\x00\x10\r";

#[test]
fn an_output_that_is_an_input_stays_as_it_is_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("echo.onnx");
    std::fs::write(&file, ECHO).unwrap();
    let mut session = SessionFactory::new(&RUNTIME, &file, settings(1)).open().unwrap();
    let mut run = |numbers: [f32; 2]| {
        let data = bytes(&numbers);
        session.run(&[Stacked { element: ElementType::F32, shape: vec![1, 2], parts: vec![&data] }]).unwrap()
    };
    let (first, second) = (run([1.0, 2.0]), run([3.0, 4.0]));
    assert_eq!([first[0].to_f32(), first[1].to_f32()], [[1.0, 2.0], [2.0, 4.0]]);
    assert_eq!([second[0].to_f32(), second[1].to_f32()], [[3.0, 4.0], [6.0, 8.0]]);
}

#[test]
fn a_batch_of_no_rows_has_an_output_of_no_rows() {
    let mut session = factory("tiny", 1).open().unwrap();
    assert_eq!(double(&mut session, &[]).shape(), [0, 4]);
    assert_eq!(double(&mut session, &[row(1.0)]).to_f32(), doubled(&[1.0]));
}

#[test]
fn inputs_that_do_not_fit_are_refused_and_leave_the_session_whole() {
    let mut session = factory("tiny", 1).open().unwrap();
    let data = bytes(&row(1.0));
    let mut refused = |shape: &[usize], parts: Vec<&[u8]>| {
        let input = Stacked { element: ElementType::F32, shape: shape.to_vec(), parts };
        let error = session.run(&[input]).unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    };
    assert_eq!(refused(&[2, 4], vec![&data]), "fewer bytes than the shape asks for");
    assert_eq!(refused(&[1, 4], vec![&data, &data]), "more bytes than the shape asks for");
    assert_eq!(refused(&[usize::MAX, 4], vec![&data]), "more bytes than the shape asks for");
    assert!(refused(&[1, 2], vec![&data[..8]]).contains("Got invalid dimensions"));
    assert!(session.run(&[]).is_err());
    let wrong = Stacked { element: ElementType::I32, shape: vec![1, 4], parts: vec![&data] };
    assert!(session.run(&[wrong]).is_err());
    assert_eq!(double(&mut session, &[row(7.0)]).to_f32(), doubled(&[7.0]));
}

/// Embeds `rows` texts of `tokens` tokens, all the same.
fn embed(session: &mut Session, rows: usize, tokens: usize) -> Tensor {
    let inputs = [10_i64, 1, 0].map(|number| number.to_le_bytes().repeat(rows * tokens));
    let input = |data| Stacked { element: ElementType::I64, shape: vec![rows, tokens], parts: vec![data] };
    let stacked: Vec<Stacked<'_>> = inputs.iter().map(|data| input(data.as_slice())).collect();
    session.run(&stacked).unwrap().remove(0)
}

#[test]
fn several_inputs_of_changing_shapes_give_what_a_fresh_session_gives() {
    let mut used = factory("minilm", 1).open().unwrap();
    for (rows, tokens) in [(1, 3), (4, 16), (2, 5), (5, 2), (1, 3)] {
        let output = embed(&mut used, rows, tokens);
        assert_eq!(output.shape(), [rows, tokens, 384]);
        assert_eq!(output, embed(&mut factory("minilm", 1).open().unwrap(), rows, tokens));
    }
}

#[test]
fn sessions_of_a_factory_share_a_graph_and_run_it_at_the_same_time() {
    let factory = factory("minilm", 1);
    let sessions: Vec<Session> = (0..4).map(|_| factory.open().unwrap()).collect();
    assert!(sessions.iter().all(Session::shares_its_graph));
    let alone = embed(&mut self::factory("minilm", 1).open().unwrap(), 2, 9);
    std::thread::scope(|scope| {
        for mut session in sessions {
            let alone = &alone;
            scope.spawn(move || (0..20).for_each(|_| assert_eq!(embed(&mut session, 2, 9), *alone)));
        }
    });
}

#[test]
fn sessions_with_several_threads_each_share_nothing_and_run_all_the_same() {
    let factory = factory("minilm", 2);
    let (mut first, mut second) = (factory.open().unwrap(), factory.open().unwrap());
    assert!(!first.shares_its_graph() && !second.shares_its_graph());
    assert_eq!(embed(&mut first, 2, 9).shape(), embed(&mut second, 2, 9).shape());
}

#[test]
fn a_cancelled_run_ends_and_does_not_touch_another_session_of_the_graph() {
    let factory = factory("slow", 1);
    let (mut ended, mut other) = (factory.open().unwrap(), factory.open().unwrap());
    let canceller = ended.canceller();
    std::thread::scope(|scope| {
        let ending = scope.spawn(move || (0..200).any(|_| run_zeros(&mut ended).is_err()));
        let running = scope.spawn(move || (0..3).all(|_| run_zeros(&mut other).is_ok()));
        while !ending.is_finished() {
            canceller.cancel();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(ending.join().unwrap(), "no run was ended");
        assert!(running.join().unwrap(), "a run of another session was ended");
    });
}

fn run_zeros(session: &mut Session) -> Result<Vec<Tensor>, SessionError> {
    let ports = session.signature().inputs.clone();
    let zeros = vec![0; 1 << 20];
    let mut inputs = Vec::new();
    for port in &ports {
        let shape: Vec<usize> = port.dims.iter().map(|size| size.unwrap_or(1)).collect();
        let length = shape.iter().product::<usize>() * port.element.size_bytes();
        inputs.push(Stacked { element: port.element, shape, parts: vec![&zeros[..length]] });
    }
    session.run(&inputs)
}

#[test]
fn a_factory_that_parts_loads_the_model_again() {
    let factory = factory("tiny", 1);
    let first = factory.open().unwrap();
    factory.part(std::time::Instant::now());
    let mut second = factory.clone().open().unwrap();
    assert!(!first.shares_its_graph() && !second.shares_its_graph());
    assert!(factory.open().unwrap().shares_its_graph());
    // Of two that break together the other one finds what the first has loaded.
    let broke = std::time::Instant::now();
    factory.part(broke);
    let third = factory.open().unwrap();
    factory.part(broke);
    assert!(factory.open().unwrap().shares_its_graph() && third.signature() == second.signature());
    assert_eq!(double(&mut second, &[row(1.0)]).to_f32(), doubled(&[1.0]));
}

#[test]
fn where_cuda_is_not_to_be_had_the_cpu_is_used_only_if_it_may_be() {
    let open = |providers: &[ExecutionProvider]| {
        let settings = SessionSettings { providers: providers.to_vec(), ..settings(1) };
        SessionFactory::new(&RUNTIME, &common::model("tiny").join("model.onnx"), settings).open()
    };
    let session = open(&[ExecutionProvider::Cuda, ExecutionProvider::Cpu]).unwrap();
    assert_eq!(session.provider(), ExecutionProvider::Cpu);
    let error = open(&[ExecutionProvider::Cuda]).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("execution provider `cuda` is not available"), "{error}");
}

#[test]
fn a_factory_may_be_used_from_any_thread() {
    fn is_shared<T: Clone + Send + Sync>(_: &T) {}
    is_shared(&factory("tiny", 1));
}
