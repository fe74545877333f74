"""The command line ``tsd``: one verb per rule. A verb parses, calls the library, and gives an exit status.

Exit status: 0 done, 1 the work failed, 2 bad input or usage; messages go to standard error.
"""

import argparse
import errno
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from tsd import __version__
from tsd.errors import InputError, WorkError, sentence
from tsd.files import OF_DISKS
from tsd.outputs import Writes, check_output

Args = argparse.Namespace

EVIDENCE = Path("benchmarks/evidence")
"""Published metrics, a folder for each suite."""

PREDICTIONS = Writes(own=("predictions.json", "predictions.csv"), names=("proposals.npz", "runtime.json"))
FOLDER_OF_DATA = Writes(among_sources=("data",))
METRICS = Writes(own=("metrics.json",), with_run_folder=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status, 141 (as of SIGPIPE) if nobody reads standard output any more."""
    if sys.stdout is None:  # closed by who started this: whatever file is opened next would be number 1
        _discard_output()
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        _discard_output()
        print(f"standard output can't be written to: {error.strerror}", file=sys.stderr)
        return 1


def _discard_output() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != 1:
        os.dup2(nowhere, 1)
        os.close(nowhere)


def _check_output(error: OSError) -> None:
    """Raise if the error came from standard output: nobody reads it any more, or it takes not even a newline."""
    sys.stdout.flush()
    poll = select.poll()
    poll.register(1, 0)
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        raise BrokenPipeError
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF):
        os.write(1, b"\n")


def _main(arguments: list[str] | None) -> int:
    args = _parser().parse_args(arguments)
    args.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _cleaning_up_at_sigterm():
            _check_outputs(args)
            return args.run(args) or 0
    except InputError as error:
        return _failed(sentence(error), 2)
    except WorkError as error:
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            return _failed(stop.code, 1)
        raise
    except Exception as error:
        if isinstance(error, OSError):
            _check_output(error)
            if error.errno in OF_DISKS:
                place = error.filename2 or error.filename
                return _failed(f"{place or f'{args.verb} failed'}: {error.strerror}", 1)
        traceback.print_exc()
        return _failed(f"{args.verb} failed: {type(error).__name__}: {error}", 1)


@contextmanager
def _cleaning_up_at_sigterm() -> Iterator[None]:
    """Let SIGTERM end any verb as an exception, after which ``finally`` removes what is half made.

    A training, which saves its state first, and a watch have handlers of their own meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():  # Python takes handlers from no other
        yield
        return

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(f"stopped by signal {signal.Signals(number).name}")

    old = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _failed(text: str, status: int) -> int:
    """Tell a user, and the launcher if there is one, why this ends; returns the exit status."""
    from tsd.engine.distributed import tell_launcher

    print(text, file=sys.stderr)
    tell_launcher(text, os.environ)
    return status


WRITTEN = ("output", "out", "target", "summary")
"""Options that name what a verb writes; every other path is of what it reads."""


def _check_outputs(args: Args) -> None:
    """Before anything is done: what the verb writes must not be what it reads, nor what people wrote."""
    given = vars(args)
    outputs = [given[name] for name in WRITTEN if isinstance(given.get(name), Path)]
    if not outputs:
        return
    read = list(_suite(args).places) if given.get("suite") else []
    for name, value in given.items():
        if name not in (*WRITTEN, "run_folder"):
            values = value if isinstance(value, list) else [value]
            read += [path for path in values if isinstance(path, Path)]
    for output in outputs:
        check_output(output, args.writes, read, given.get("run_folder"))


def _generate(args: Args) -> int:
    from tsd.data.generate import SceneSpec, generate

    if bool(args.scale) != (args.format == "openimages"):
        raise InputError("tsd data generate: --format openimages and --scale challenge2019 go together")
    if args.scale:
        from tsd.data.challenge_scale import generate_challenge

        if args.suite or args.set or args.out is None:
            raise InputError("tsd data generate --scale: expected --out FOLDER, and neither --suite nor --set")
        size = 1.0 if args.fraction is None else args.fraction
        for name, rows in generate_challenge(args.out, fraction=size, seed=args.seed or 0).items():
            print(f"{args.out / 'annotations' / name}: {rows} rows")
        return 0
    for option in ("fraction", "seed"):
        if getattr(args, option) is not None:
            raise InputError(
                f"tsd data generate --{option}: only with --scale; scenes are described by --set or a suite"
            )
    if args.suite:
        if args.set or args.out is not None:
            raise InputError(
                "tsd data generate: expected --suite NAME, whose file describes the scenes and their folder, or --out "
                "FOLDER with --set key=value …"
            )
        suite = _suite(args)
        if "generate" not in suite.data:
            raise InputError(
                f"params/suites/{args.suite}.yaml: data.format is {suite.data['format']}: nothing to generate"
            )
        spec, out = suite.data["generate"], Path(suite.data["folder"], "origin" if suite.is_openimages else "")
    else:
        spec, out = _pairs(args.set), args.out
        if out is None:
            raise InputError("tsd data generate: give --suite NAME, or --out FOLDER with --set key=value …")
    generate(SceneSpec.from_dict(spec), out, workers=args.workers, force=args.force)
    return 0


def _import_voc(args: Args) -> int:
    from tsd.data.formats import voc, voc_files

    if (args.val is None) == (args.val_fraction is None):
        raise InputError("tsd data import voc: expected --val LIST or --val-fraction FRACTION")
    known = {"voc": voc_files.CLASSES, "found": None}
    classes = known[args.classes] if args.classes in known else voc_files.read_classes(Path(args.classes))
    options = voc_files.Options(args.max_side, args.quality, args.first_pixel, classes, args.workers)
    lists = voc_files.Lists(args.train, args.val, args.val_fraction or 0.0)
    counts = voc.import_voc(args.folder, lists, args.out, options)
    for split, (number, boxes) in counts.items():
        print(f"{args.out / 'annotations' / f'instances_{split}.json'}: {number} pictures, {boxes} boxes")
    return 0


def _fetch(args: Args) -> int:
    from tsd.data.formats.coco_place import NEEDED
    from tsd.engine import acquire

    suite = _suite(args)
    if "import" in suite.data:
        return _fetch_import(suite, args)
    if not suite.is_openimages:
        unpacked = acquire.fetch_coco(suite, args.parts or NEEDED)
        if unpacked is None:
            print(f"{suite.fetched.out}: is there, used as it is")
        for name, number in (unpacked or {}).items():
            print(f"{name}: {number} files")
        return 0
    if args.parts:
        raise InputError("--parts: only the archives of COCO are fetched by part")
    if args.what in ("annotations", "all"):
        files = acquire.fetch_annotations(suite, args.workers)
        print(f"{suite.challenge.annotations}: {len(files)} files are whole")
    if args.what == "all" and suite.data.get("pictures", "planned") == "planned":
        for seed in suite.seeds:
            acquire.plan_suite(suite, seed)
    if args.what in ("pictures", "all"):
        summary = acquire.fetch_pictures(suite, threads=args.threads, shards=args.shards)
        counts = ", ".join(f"{number} {split}" for split, number in summary["pictures"].items())
        print(f"{suite.challenge.folder}: {counts} pictures are whole, {summary['bytes'] / 1e9:.2f} GB")
    return 0


def _fetch_import(suite: Any, args: Args) -> int:
    from tsd.engine.acquire import fetch_import

    if args.parts:
        raise InputError("--parts: only the archives of COCO are fetched by part")
    counts = fetch_import(suite, args.workers)
    for split in ("train", "val"):
        number = f"{counts[split][0]} pictures, {counts[split][1]} boxes" if counts else "is there, used as it is"
        print(f"{suite.split(split)[0]}: {number}")
    return 0


def _openimages(args: Args) -> int:
    from tsd.engine.acquire import build_stores

    for split, counts in build_stores(_suite(args)).items():
        print(f"{split}: " + ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items()))
    return 0


def _manifest(args: Args) -> int:
    from tsd.data.manifest import dump, folder_manifest

    suite = _suite(args)
    memory = None if args.quick else Path("results", suite.name, "data")
    text = dump(folder_manifest(suite.split("train"), suite.split("val"), memory) | {"contents": not args.quick})
    if args.output:
        from tsd.files import write_text

        write_text(args.output, text)
    else:
        print(text, end="")
    return 0


def _verify(args: Args) -> int:
    from tsd.engine.verify import verify_suite

    summary = verify_suite(_suite(args), check_pictures=args.pictures)
    if args.output:
        from tsd.files import write_json

        write_json(args.output, summary)
    print(f"{args.suite}: data is whole: {summary['train']} training and {summary['val']} validation pictures")
    return 0


def _config(args: Args) -> int:
    from tsd.engine.config import load_config
    from tsd.files import write_text

    run = _run(args)
    text = load_config(run).pretty_text
    if args.output:
        write_text(args.output, text)
    else:
        print(text)
    return 0


def _train(args: Args) -> int:
    from tsd.engine import distributed
    from tsd.engine.train import train
    from tsd.report.tables import table_rows
    from tsd.tracking.store import tracking_uri

    run = _run(args)
    command = distributed.launch(run, args.arguments, os.environ)
    if command is not None:
        print(" ".join(command), file=sys.stderr, flush=True)
        os.execvp(command[0], command)
    uri = None if args.no_mlflow else tracking_uri(Path.cwd())
    rows = table_rows(Path("params"), run.experiment)
    folder = train(run, uri=uri, table_rows=rows)
    if distributed.rank() == 0:
        print(folder / "checkpoint.pth")
    return 0


def _predict(args: Args) -> int:
    from tsd.engine.predict import predict

    run = _run(args)
    source = args.checkpoint or run.checkpoint
    output = args.output or run.predictions
    if bool(args.annotations) != bool(args.images):
        raise InputError("tsd predict: --annotations and --images go together")
    pictures = (args.annotations, args.images) if args.annotations else None
    if (pictures or args.limit or args.checkpoint) and not args.output:
        raise InputError(
            "tsd predict: give --output: the run's own predictions are its own checkpoint's, of all val pictures"
        )
    others = pictures or args.limit or source.resolve() != run.checkpoint.resolve()
    if others and output.resolve() == run.predictions.resolve():
        raise InputError(f"{output}: the run's own predictions are its own checkpoint's, of all val pictures")
    number = predict(run, source, output, limit=args.limit, pictures=pictures)
    print(f"{output}: {number} detections")
    return 0


def _evaluate_coco(args: Args) -> int:
    from tsd.evaluation.coco import evaluate_boxes_and_masks, evaluate_coco, format_summary
    from tsd.files import write_json

    if args.voc and args.iou_type != "bbox":
        raise InputError("tsd evaluate coco: --voc: VOC's figures are of boxes; leave out --iou-type segm")
    _check_evaluated(args, args.annotations)
    if args.run_folder:
        from tsd.engine.record import run_facts
        from tsd.engine.run_files import read_experiment
        from tsd.engine.settings import has_masks

        both = has_masks(read_experiment(args.run_folder)["params"])
        evaluate = evaluate_boxes_and_masks if both else evaluate_coco
        figures = evaluate(args.annotations, args.predictions) | {"run": run_facts(args.run_folder, args.predictions)}
    else:
        figures = evaluate_coco(args.annotations, args.predictions, iou_type=args.iou_type)
    if args.voc:
        from tsd.engine.adapters.voc import add_voc, format_voc

        figures = add_voc(figures, args.annotations, args.predictions)
    write_json(args.output, figures)
    print(format_summary(figures["metrics"]))
    if args.voc:
        print(format_voc(figures["metrics"]))
    _show_run(args)
    return 0


def _evaluate_draws(args: Args) -> int:
    from tsd.data.coco import read_coco
    from tsd.evaluation.draws import draw_figures, write_draws

    trained = read_coco(args.trained) if args.trained else None
    figures = draw_figures(read_coco(args.annotations), args.predictions, trained, args.draws)
    write_draws(figures, args.output)
    print(f"{args.output}: {len(figures.columns)} figures of all pictures and of {args.draws} draws")
    return 0


def _evaluate_openimages(args: Args) -> int:
    from tsd.evaluation.openimages import PROTOCOLS, compare_files, format_protocols
    from tsd.files import write_json

    _check_evaluated(args, args.boxes)
    files = (args.boxes, args.image_labels, args.classes, args.hierarchy, args.predictions)
    options = {"group_of_weight": args.group_of_weight, "expand_predictions": args.expand_predictions}
    figures = compare_files(*files, protocols=PROTOCOLS if args.run_folder else (args.protocol,), **options)
    if args.run_folder:
        from tsd.engine.record import run_facts

        figures["run"] = run_facts(args.run_folder, args.predictions)
    write_json(args.output, figures)
    print(format_protocols(figures))
    _show_run(args)
    return 0


def _check_evaluated(args: Args, annotations: Path) -> None:
    """A run's metrics are of its own predictions, judged by the annotations of its suite."""
    if not args.run_folder:
        return
    from tsd.engine.record import validation_annotations
    from tsd.engine.run_files import read_experiment

    if not args.predictions.resolve().is_relative_to(args.run_folder.resolve()):
        raise InputError(
            f"{args.predictions}: not in {args.run_folder}, whose evaluation this is to be; leave out --run-folder"
        )
    own = validation_annotations(read_experiment(args.run_folder)["data"])
    if annotations.resolve() != own.resolve():
        raise InputError(f"{annotations}: not what {args.run_folder} is judged by; expected {own}, or no --run-folder")


def _show_run(args: Args) -> None:
    """Draw pictures of an evaluated run, and bring MLflow in step with it."""
    if args.run_folder and not args.no_mlflow:
        from tsd.engine.record import draw_pictures
        from tsd.tracking.follow import mirror
        from tsd.tracking.store import tracking_uri

        draw_pictures(args.run_folder, args.output.parent)
        mirror(args.run_folder, tracking_uri(Path.cwd()))


def _sample(args: Args) -> int:
    from tsd.data.plan import Options, plan, write_plans

    single = (args.boxes, args.classes, args.output)
    if args.suite:
        from tsd.engine.acquire import plan_suite
        from tsd.engine.params import plan_path

        suite = _suite(args)
        if any(single):
            raise InputError("tsd sample: give --suite, or --boxes, --classes and --output")
        plans, output = plan_suite(suite, args.seed), plan_path(suite, args.seed)
    else:
        if not all(single):
            raise InputError("tsd sample: give --suite NAME, or --boxes, --classes and --output")
        options = Options(args.group_of, "ancestors" if args.ancestors else "none", args.sampling)
        made = plan(args.boxes, args.classes, args.ancestors, options, seed=args.seed, epochs=args.epochs)
        write_plans([made], args.output)
        output, plans = args.output, [made.facts]
    for facts in plans:
        print(
            f"{output}: {facts['sampling']}: {facts['touched']} of {facts['pictures']} pictures in {facts['draws']} "
            f"draws; {facts['never']} are never drawn, the most frequent {facts['most_repeated']} times"
        )
    return 0


def _submission_openimages(args: Args) -> int:
    from tsd.evaluation.submission import validate_openimages, write_openimages

    files = (args.pictures, args.classes, args.hierarchy)
    if args.validate:
        number = validate_openimages(args.validate, *files)
        print(f"{args.validate}: valid, {number} boxes")
        return 0
    if not args.predictions or not args.output:
        raise InputError("tsd submission openimages: give --predictions and --output, or --validate FILE")
    number = write_openimages(args.predictions, *files, args.output)
    print(f"{args.output}: valid, {number} boxes")
    return 0


def _submission_coco(args: Args) -> int:
    from tsd.evaluation.coco_submission import validate_coco, write_coco

    if args.validate:
        print(f"{args.predictions}: valid, {len(validate_coco(args.predictions, args.pictures))} detections")
        return 0
    if not args.algorithm or not args.output:
        raise InputError("tsd submission coco: give --algorithm and --output, or --validate")
    path, number = write_coco(args.predictions, args.pictures, args.algorithm, args.output)
    print(f"{path}: valid, {number} detections")
    return 0


def _tables(args: Args) -> int:
    from tsd.engine.results import make_tables

    text = make_tables(_suite(args), args.metrics, args.output, args.models, args.summary)
    print(text)
    return 0


def _inspect(args: Args) -> int:
    from tsd.engine.inspect import format_facts, inspect_suite, write_facts
    from tsd.engine.networks import PROPOSALS, RECORD, SIZE, record

    size = (args.size[1], args.size[0])
    if args.record and (size, args.proposals) != (SIZE, PROPOSALS):
        raise InputError(
            f"--record: {RECORD} holds counts for --size {SIZE[1]} {SIZE[0]} --proposals {PROPOSALS} alone"
        )
    suite = _suite(args)
    facts = inspect_suite(suite, size, args.proposals)
    if args.output:
        write_facts(args.output, facts, size, args.proposals)
    if args.record:
        record(suite, facts)
    print(format_facts(facts))
    return 0


def _convert(args: Args) -> int:
    from tsd.engine.convert import convert

    meta = convert(_suite(args), args.experiment, args.source, args.target)
    print(f"{args.target}: {meta['tensors']} tensors from {args.source}, sha256 {meta['sha256'][:12]}")
    return 0


def _figures(args: Args) -> int:
    from tsd.engine.results import make_figures

    make_figures(_suite(args), args.metrics, args.output)
    return 0


def _runs(args: Args) -> int:
    from tsd.engine.results import make_run_list

    make_run_list(_suite(args), args.metrics, args.output)
    return 0


def _report(args: Args) -> int:
    from tsd.engine.results import make_report

    make_report(_suite(args), args.output)
    return 0


def _results(args: Args) -> int:
    from tsd.engine.results import make_results_page

    make_results_page(args.evidence, args.output)
    print(args.output)
    return 0


def _claims(args: Args) -> int:
    from tsd.engine.judge import make_claims

    print(make_claims(_suite(args), args.output, args.metrics))
    return 0


def _sensitivity(args: Args) -> int:
    from tsd.engine.sensitivity import draw
    from tsd.report.sensitivity import agreement

    found = draw(_run(args), args.checkpoint, args.picture, args.instance, args.grid, args.output)
    correlation = agreement(found)
    said = "one of the maps is flat" if correlation is None else f"correlation of the two maps {correlation:.2f}"
    print(f"{args.output}: a {found.instance.name} in {found.instance.image}, {said}")
    return 0


def _explain(args: Args) -> int:
    from tsd.engine.explain import explain, explain_rows, what_if

    suite = _suite(args)
    if args.row is not None and args.table is None:
        raise InputError("tsd explain: a row needs its table")
    if args.table:
        print(explain_rows(suite, args.table, args.row))
    elif not args.set:
        print(explain(suite))
    if args.set:
        print(what_if(suite, args.set, args.experiment or suite.experiments))
    return 0


def _reproduce(args: Args) -> int:
    from tsd.engine.published import Key, read_published
    from tsd.engine.rehearsal import rehearse
    from tsd.engine.reproduce import Next, StoppedAt, reproduce
    from tsd.engine.resolve import resolved

    published = read_published(Key.parse(args.run_name), args.evidence)
    with resolved(published) as found:
        if args.dry_run:
            print(rehearse(found, published))
            return 0
        with redirect_stdout(sys.stderr):  # what libraries print while they work is no answer
            done = reproduce(found, published, args.arguments, args.stop, args.only_train)
    if isinstance(done, Next):
        sys.stdout.flush()
        os.execvpe(done.command[0], done.command, done.environment)
    if isinstance(done, StoppedAt):
        from tsd.report.reproduction import of_loss

        print(f"{published.key}: DIFFERS: losses {of_loss(done.loss)}")
        print("stopped, and its state saved; without --stop the same command goes on", file=sys.stderr)
        return 1
    return 0 if done is None else _report_reproduction(published, found, done, args.output)


def _report_reproduction(published: Any, found: Any, run: Any, output: Path | None) -> int:
    from tsd.engine.reproduce import REPORT, STATE
    from tsd.evaluation.comparison import compare
    from tsd.files import read_json, write_json
    from tsd.report.reproduction import format_report, report_content

    here = read_json(run.eval_folder / "metrics.json")
    seen = compare(published.content, here)
    took = read_json(run.folder / STATE)
    name, path = str(published.key), published.path
    content = report_content(name, path, found.origin, published.facts, here["run"], seen, took)
    for place in (output, run.folder / REPORT):
        if place is not None:
            write_json(place, content)
    print(format_report(content, seen))
    print(f"  report      {run.folder / REPORT}")
    return 0 if seen.identical else 1


def _prune(args: Args) -> int:
    from tsd.engine.prune import find_stale, prune

    if args.paths and not args.yes:
        raise InputError("tsd prune: paths are named for --yes, which removes them")
    suite = _suite(args)
    paths = args.paths or find_stale(suite).paths
    for path in paths:
        print(path)
    if args.yes:
        prune(suite, args.paths)
    else:
        print("listed only; --yes removes them" if paths else "nothing to prune", file=sys.stderr)
    return 0


def _titles(name: str) -> dict[str, str]:
    """Names and titles of the tables that a suite makes; none for a suite that is gone from params."""
    from tsd.engine.params import load_suite
    from tsd.report.tables import chosen_tables

    try:
        shown = chosen_tables(Path("params"), load_suite(name).tables)
    except InputError:
        return {}
    return {table: definition["title"] for table, definition in shown.items()}


def _doctor(args: Args) -> int:
    from tsd.doctor.examine import examine

    return examine(_suite(args), quick=args.quick, as_json=args.json)


def _mlflow_init(args: Args) -> int:
    from tsd.tracking.process import NoAnswerError, Process, RefusedError
    from tsd.tracking.store import seconds_to_answer, tracking_uri, without_password

    _suite(args)
    root = Path.cwd()
    uri = tracking_uri(root)
    shown = without_password(uri)
    wanted: dict[str, Any] = {"root": root, "experiments": [f"tsd-{args.suite}"], "tables": _titles(args.suite)}
    with Process() as process:
        try:
            pages = process.call("init", uri=uri, seconds=seconds_to_answer(uri), while_moving=True, **wanted)
        except (NoAnswerError, RefusedError) as error:  # a server that is down must not keep trainings from starting
            print(f"MLflow at {shown} can't be reached ({error}); `tsd mlflow sync` will catch up", file=sys.stderr)
            pages = []
    if args.output:
        _write_output(args.output, {"uri": shown, "ready": bool(pages)})
    print(shown)
    for page in pages:
        print(f"runs with their AP columns: {_server(shown)}{page}")
    return 0


def _server(uri: str) -> str:
    """Where a browser finds the store: the server itself, or what ``make ui`` starts."""
    return uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{os.environ.get('PORT', '5000')}"


def _mlflow_sync(args: Args) -> int:
    from tsd.tracking.store import tracking_uri, without_password
    from tsd.tracking.sync import sync_all

    _check_sync(args)
    root = Path()  # so that folders are told as a person types them
    uri = tracking_uri(root)
    if args.watch:
        return _mlflow_watch(args, root, uri)
    report = sync_all(root, uri, args.suite, pending=args.pending, titles=_titles)
    print(f"{len(report.synced)} runs in step with MLflow, {len(report.failed)} failed")
    for reason in report.reasons:
        print(reason, file=sys.stderr)
    for item in report.failed:
        print(f"failed: {item}", file=sys.stderr)
    if args.output:
        said = {"synced": [*map(str, report.synced)], "failed": [*map(str, report.failed)], "reasons": report.reasons}
        _write_output(args.output, {"uri": without_password(uri)} | said)
        return 0
    return 1 if report.failed else 0


def _write_output(path: Path, content: dict[str, Any]) -> None:
    from tsd.files import write_json

    try:
        write_json(path, content)
    except OSError as error:
        raise WorkError(f"{path}: can't be written: {error.strerror}") from None


def _check_sync(args: Args) -> None:
    if args.suite is not None:
        _suite_or_results(args.suite)
    if args.until_done and not (args.watch and args.suite):
        raise InputError("tsd mlflow sync --until-done: expected --watch and --suite NAME, whose runs are waited for")
    if args.watch and (args.pending or args.output):
        raise InputError("tsd mlflow sync --watch: expected neither --pending nor --output: it follows all runs")


def _suite_or_results(name: str) -> None:
    """A suite that is gone from params may still have runs."""
    from tsd.engine.params import load_suite

    if name not in {path.parent.name for path in Path("results").glob("*/runs")}:
        load_suite(name)


def _mlflow_watch(args: Args, root: Path, uri: str) -> int:
    from tsd.engine.identity import data_digest
    from tsd.engine.params import get_runs, load_suite
    from tsd.tracking.sync import Watcher, has_ended, watch

    def missing() -> list[str]:
        suite = load_suite(args.suite)
        runs = get_runs(suite, data_digest(suite))
        return [run.key for run in runs if not (run.metrics_file.exists() or has_ended(run.folder, run.eval_folder))]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, stop)
    try:
        watcher = Watcher(root, uri, args.suite, _titles)
        return 0 if watch(watcher, args.watch, missing if args.until_done else None) else 1
    finally:
        signal.signal(signal.SIGTERM, old)


def _suite(args: Args) -> Any:
    from tsd.engine.params import load_suite

    return load_suite(args.suite)


def _run(args: Args) -> Any:
    from tsd.engine.identity import data_digest
    from tsd.engine.params import get_run

    suite = _suite(args)
    run = get_run(suite, args.experiment, args.seed, data_digest(suite))
    if getattr(args, "digest", None) and args.digest != run.digest:
        raise InputError(
            f"params/: {args.experiment} of suite {args.suite} now resolves to digest {run.digest}, not {args.digest}: "
            "params or data.dvc changed after the job was made; start snakemake again"
        )
    return run


def _pairs(pairs: list[str]) -> dict[str, Any]:
    from tsd.files import parse_yaml

    spec = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise InputError(f"--set {pair}: expected key=value")
        spec[key] = parse_yaml(value, f"--set {pair}")
    return spec


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tsd", description="Reproduce 'Revisiting the Sibling Head in Object Detector'."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    data = verbs.add_parser("data", help="make, describe and check data").add_subparsers(required=True, metavar="VERB")
    verb = _add(
        data, "generate", _generate, "render a suite's scenes: params → COCO JSON, pictures, manifest", FOLDER_OF_DATA
    )
    verb.add_argument("--suite", help="a suite whose data.format is generated")
    verb.add_argument("--out", type=Path, help="folder, with --set instead of --suite")
    verb.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="parameters, with --out")
    verb.add_argument("--format", choices=["coco", "openimages"], default="coco", help="openimages: with --scale")
    verb.add_argument(
        "--scale", choices=["challenge2019"], help="the challenge's annotation files in their true size, no pictures"
    )
    verb.add_argument("--fraction", type=float, help="with --scale: of that size (default: 1)")
    verb.add_argument("--seed", type=_seed, help="with --scale (default: 0)")
    verb.add_argument("--workers", type=int, default=1, help="processes; the bytes do not depend on it")
    verb.add_argument("--force", action="store_true", help="replace other content of the folder")
    imports = data.add_parser("import", help="annotations of another form → COCO JSON").add_subparsers(
        required=True, metavar="FORM"
    )
    verb = _add(
        imports,
        "voc",
        _import_voc,
        "Pascal VOC's XML and pictures → COCO JSON and pictures of train and val",
        FOLDER_OF_DATA,
    )
    verb.add_argument("folder", type=Path, help="with Annotations/ and JPEGImages/, such as VOCdevkit/VOC2007")
    verb.add_argument("--out", type=Path, required=True, help="a new folder")
    verb.add_argument("--train", metavar="LIST", help="of ImageSets/Main, such as trainval (default: all but val's)")
    verb.add_argument("--val", metavar="LIST", help="of ImageSets/Main, such as test")
    verb.add_argument(
        "--val-fraction",
        type=_fraction,
        help="in place of --val: so many of the pictures, by the digest of their names",
    )
    verb.add_argument(
        "--classes", default="voc", help="voc: its twenty (default); found: those that occur; or a file, a name a line"
    )
    verb.add_argument("--max-side", type=_positive, help="reduce larger pictures to so many pixels")
    verb.add_argument("--quality", type=_quality, help="1 to 95: save every JPEG picture anew with it")
    verb.add_argument(
        "--first-pixel",
        type=int,
        choices=[0, 1],
        default=1,
        help="number of a picture's first pixel (default: 1, VOC's)",
    )
    verb.add_argument("--workers", type=_positive, default=1, help="threads that read and write pictures")
    verb = _add(data, "fetch", _fetch, "fetch a suite's data by params/sources.yaml; what is stopped is gone on with")
    _suite_option(verb)
    verb.add_argument("--what", choices=["annotations", "pictures", "all"], default="all", help="of Open Images")
    verb.add_argument("--threads", type=_positive, default=32, help="pictures at once (default: %(default)s)")
    verb.add_argument("--shards", action="store_true", help="pictures by the bucket's archives instead of one by one")
    verb.add_argument(
        "--parts",
        nargs="+",
        choices=["annotations", "train2017", "val2017", "test2017", "test_info"],
        help="of COCO (default: annotations val2017 train2017, of which the folder is made)",
    )
    verb.add_argument(
        "--workers", type=_positive, default=1, help="processes that render generated scenes, threads that import VOC's"
    )
    verb = _add(data, "openimages", _openimages, "a suite's CSV files → columnar stores, which training reads")
    _suite_option(verb)
    verb = _add(data, "manifest", _manifest, "describe a suite's data: digests and counts")
    _suite_option(verb)
    verb.add_argument(
        "--quick",
        action="store_true",
        help="take a picture's name and size for its content, and say so: contents: false",
    )
    verb.add_argument("--output", type=Path)
    verb = _add(data, "verify", _verify, "check a suite's data against its pin and its annotations")
    _suite_option(verb)
    verb.add_argument("--pictures", action="store_true", help="decode every picture as well")
    verb.add_argument("--output", type=Path, help="JSON that says that the data is whole")

    verb = _add(verbs, "config", _config, "params → mmengine config, runnable with mmdet's own tools")
    _run_options(verb)
    verb.add_argument("--output", type=Path)
    verb = _add(verbs, "train", _train, "train one run, or go on with it; writes checkpoint.pth in the run's folder")
    _run_options(verb)
    verb.add_argument("--no-mlflow", action="store_true", help="files only")
    verb = _add(
        verbs, "predict", _predict, "checkpoint → predictions.json (COCO results) and proposals.npz", PREDICTIONS
    )
    _run_options(verb)
    verb.add_argument("--checkpoint", type=Path, help="default: the run's own")
    verb.add_argument("--output", type=Path, help="default: in the run's eval folder")
    verb.add_argument("--limit", type=_positive, help="only the first pictures")
    verb.add_argument("--annotations", type=Path, help="COCO JSON of other pictures: image_info_test-dev2017.json")
    verb.add_argument("--images", type=Path, help="their folder")

    verb = _add(
        verbs,
        "sensitivity",
        _sensitivity,
        "checkpoint → where an instance is classified and localised well",
        Writes(suffixes=(".npz",)),
    )
    _run_options(verb)
    verb.add_argument("--checkpoint", type=Path, help="default: the run's own")
    verb.add_argument("--picture", help="id of a val picture (default: one with an instance of a tenth of its area)")
    verb.add_argument("--instance", type=int, default=0, help="of the picture's instances, from 0 (default: 0)")
    verb.add_argument("--grid", type=_positive, default=33, help="positions along each side (default: %(default)s)")
    verb.add_argument("--output", type=Path, required=True, help="PNG; beside it the maps as .npz")

    evaluate = verbs.add_parser("evaluate", help="predictions → metrics.json").add_subparsers(
        required=True, metavar="PROTOCOL"
    )
    verb = _add(evaluate, "coco", _evaluate_coco, "the 12 COCO figures, per-class AP, AP by scale and IoU", METRICS)
    verb.add_argument("--annotations", type=Path, required=True, help="COCO instances JSON")
    verb.add_argument("--predictions", type=Path, required=True, help="COCO results JSON")
    verb.add_argument("--output", type=Path, required=True, help="metrics.json")
    verb.add_argument("--iou-type", choices=["bbox", "segm"], default="bbox")
    verb.add_argument("--voc", action="store_true", help="VOC's AP at IoU 0.5 too: over 11 points, and over all")
    verb.add_argument("--run-folder", type=Path, help="record as the evaluation of this run, and mirror it to MLflow")
    verb.add_argument("--no-mlflow", action="store_true", help="files only")

    verb = _add(
        evaluate,
        "draws",
        _evaluate_draws,
        "figures on all pictures and on bootstrap draws, for tsd claims",
        Writes(own=("draws.csv",)),
    )
    verb.add_argument("--annotations", type=Path, required=True, help="COCO instances JSON")
    verb.add_argument("--predictions", type=Path, required=True, help="COCO results JSON")
    verb.add_argument("--trained", type=Path, help="COCO instances JSON of the training: which classes are rare")
    verb.add_argument("--draws", type=_positive, default=1000, help="of the bootstrap (default: %(default)s)")
    verb.add_argument("--output", type=Path, required=True, help="<name of the metrics file>.draws.csv")

    verb = _add(
        evaluate, "openimages", _evaluate_openimages, "the challenge's AP at IoU 0.5, per class and in all", METRICS
    )
    for option, text in (
        ("boxes", "challenge-2019-validation-detection-bbox.csv"),
        ("image-labels", "challenge-2019-validation-detection-human-imagelabels.csv"),
        ("classes", "challenge-2019-classes-description-500.csv"),
        ("hierarchy", "challenge-2019-label500-hierarchy.json"),
        ("predictions", "CSV: ImageID,LabelName,Score,XMin,XMax,YMin,YMax"),
        ("output", "metrics.json"),
    ):
        verb.add_argument(f"--{option}", type=Path, required=True, help=text)
    verb.add_argument("--protocol", choices=["official", "released"], default="official")
    verb.add_argument("--group-of-weight", type=float, default=1.0, help="of a group box (default: %(default)s)")
    verb.add_argument("--expand-predictions", action="store_true", help="give each detection to its ancestors too")
    verb.add_argument(
        "--run-folder",
        type=Path,
        help="record as the evaluation of this run by both protocols, and mirror it to MLflow",
    )
    verb.add_argument("--no-mlflow", action="store_true", help="files only")

    verb = _add(
        verbs,
        "sample",
        _sample,
        "list the pictures that class-aware sampling will draw, before they are fetched",
        Writes(suffixes=(".json",), begins="["),
    )
    verb.add_argument("--suite", help="plan for its experiments, into its results")
    verb.add_argument("--boxes", type=Path, help="challenge-2019-train-detection-bbox.csv")
    verb.add_argument("--classes", type=Path, help="challenge-2019-classes-description-500.csv")
    verb.add_argument("--output", type=Path, help="ImageIDs, and beside it a .json with statistics")
    verb.add_argument(
        "--epochs", type=_positive, default=13, help="of as many draws as pictures (default: %(default)s)"
    )
    verb.add_argument("--seed", type=_seed, default=0)
    verb.add_argument(
        "--sampling", choices=["class_aware", "class_aware_replacement", "uniform"], default="class_aware"
    )
    verb.add_argument("--group-of", choices=["positive", "ignore", "drop"], default="positive")
    verb.add_argument("--ancestors", type=Path, metavar="HIERARCHY", help="give boxes to their ancestors by this file")

    submission = verbs.add_parser("submission", help="predictions → a leaderboard's file").add_subparsers(
        required=True, metavar="LEADERBOARD"
    )
    verb = _add(submission, "openimages", _submission_openimages, "write with ancestors and validate, or only validate")
    verb.add_argument("--pictures", type=Path, required=True, help="all ImageIDs of the test set, one per line")
    verb.add_argument("--classes", type=Path, required=True, help="challenge-2019-classes-description-500.csv")
    verb.add_argument("--hierarchy", type=Path, required=True, help="challenge-2019-label500-hierarchy.json")
    verb.add_argument("--predictions", type=Path, help="CSV: ImageID,LabelName,Score,XMin,XMax,YMin,YMax")
    verb.add_argument("--output", type=Path, help="the leaderboard's file")
    verb.add_argument("--validate", type=Path, metavar="FILE", help="only check this leaderboard file")

    verb = _add(submission, "coco", _submission_coco, "validate results and zip them for test-dev's server")
    verb.add_argument("--pictures", type=Path, required=True, help="image_info_test-dev2017.json")
    verb.add_argument("--predictions", type=Path, required=True, help="COCO results JSON")
    verb.add_argument("--algorithm", help="name in the zip's name")
    verb.add_argument("--output", type=Path, help="folder of the zip")
    verb.add_argument("--validate", action="store_true", help="only check")

    for name, function, text in (
        ("tables", _tables, "metrics.json files → tables as CSV, Markdown and LaTeX"),
        ("figures", _figures, "metrics, logs and predictions → figures"),
        ("runs", _runs, "metrics.json files → the list of runs for the HTML report"),
    ):
        verb = _add(verbs, name, function, text)
        _suite_option(verb)
        verb.add_argument("--metrics", type=Path, nargs="*", help="default: those that today's params resolve to")
        verb.add_argument("--output", type=Path, required=True, help="folder" if name != "runs" else "CSV file")
        if name == "tables":
            verb.add_argument("--models", type=Path, help="file of tsd inspect, for the columns that need no training")
            verb.add_argument(
                "--summary", type=Path, help="folder of metrics.json and training.csv (default: that of the tables)"
            )
    verb = _add(verbs, "inspect", _inspect, "count parameters and multiply-adds of a suite's detectors; needs no data")
    _suite_option(verb)
    verb.add_argument(
        "--size", type=_positive, nargs=2, default=(1344, 800), metavar=("WIDTH", "HEIGHT"), help="of the picture"
    )
    verb.add_argument("--proposals", type=_positive, default=1000, help="RoIs per picture (default: %(default)s)")
    verb.add_argument("--output", type=Path, help="also write JSON")
    verb.add_argument("--record", action="store_true", help="also put them into params/networks.csv, for plans")
    verb = _add(verbs, "convert", _convert, "a checkpoint of the released code (Sense-X/TSD) → one for tsd predict")
    verb.add_argument("source", type=Path, help="the released .pth")
    verb.add_argument("target", type=Path, help="the file to write")
    verb.add_argument("--suite", default="released", help="a file of params/suites (default: %(default)s)")
    verb.add_argument("--experiment", required=True, help="an experiment of it, with coordinates: legacy")
    verb = _add(
        verbs,
        "claims",
        _claims,
        "metrics.json files and their draws → a verdict on each claim of the paper",
        Writes(suffixes=(".csv",), begins="claim,"),
    )
    _suite_option(verb)
    verb.add_argument("--metrics", type=Path, nargs="*", help="default: those that today's params resolve to")
    verb.add_argument("--output", type=Path, required=True, help="a Markdown page; beside it the same as .csv")
    verb = _add(
        verbs,
        "results",
        _results,
        "published metrics → the page of results, docs/results.md",
        Writes(among_sources=("docs/results.md",)),
    )
    verb.add_argument(
        "--evidence",
        type=Path,
        default=EVIDENCE,
        help="a folder of metrics files for each suite of params/results.yaml (default: %(default)s)",
    )
    verb.add_argument("--output", type=Path, required=True, help="the Markdown page")
    verb = _add(verbs, "report", _report, "a suite's claims, tables, figures and runs → one HTML file")
    _suite_option(verb)
    verb.add_argument("--output", type=Path, required=True, help="the HTML file")
    verb = _add(verbs, "explain", _explain, "say what a suite's runs, or a table's cells, come from")
    _suite_option(verb)
    verb.add_argument("table", nargs="?", help='a table: "Table 3" or table3; default: a line per run')
    verb.add_argument("row", nargs="?", help="one of its rows: id, label or experiment (default: all)")
    verb.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="say what would be made anew if the setting were changed"
    )
    verb.add_argument(
        "--experiment", action="append", help="of --set: in whose entry (repeatable; default: all of the suite)"
    )
    verb = _add(verbs, "reproduce", _reproduce, "make a published run anew and compare it bit by bit")
    verb.description = (
        "Train, predict and evaluate a published run anew, in reproduced/ and never in results/, and compare losses, "
        "predictions and figures with those that were published. What is killed is gone on with by the same command. "
        "Exit status: 0 identical to the bit, 1 different (or the work failed), 2 bad input or usage."
    )
    verb.add_argument("run_name", metavar="SUITE/EXPERIMENT/seedK", help="such as evidence-cpu/baseline/seed0")
    verb.add_argument(
        "--evidence",
        type=Path,
        default=EVIDENCE,
        metavar="PATH",
        help="metrics file, or folder of them (default: %(default)s)",
    )
    verb.add_argument("--dry-run", action="store_true", help="say what would be done and what it takes, and do nothing")
    verb.add_argument("--stop", action="store_true", help="end at the first step whose loss differs")
    verb.add_argument("--output", type=Path, help="the report as JSON, also here (always in the repetition's folder)")
    verb.add_argument("--only-train", action="store_true", help=argparse.SUPPRESS)  # to each of several processes
    verb = _add(verbs, "prune", _prune, "list the runs that today's params no longer resolve to")
    _suite_option(verb)
    verb.add_argument("--yes", action="store_true", help="remove them")
    verb.add_argument("paths", type=Path, nargs="*", help="with --yes: only these of them; needed to remove every run")

    verb = _add(
        verbs, "doctor", _doctor, "say whether this machine can do a suite's work, and what to do where it can't"
    )
    verb.description = (
        "Look at the environment, the GPUs, every operator, the processes that it was started with (srun, torchrun), "
        "the file system, weights, MLflow, Slurm and data. A line each: ok, warning or error, and what mends it. "
        "Exit status: 0, 1 if there is an error, 2 for bad usage."
    )
    _suite_option(verb)
    verb.add_argument("--quick", action="store_true", help="look for data and weights, and do not read them")
    verb.add_argument("--json", action="store_true", help="print a JSON list and nothing else")

    mlflow = verbs.add_parser("mlflow", help="the mirror of the runs in MLflow").add_subparsers(
        required=True, metavar="VERB"
    )
    verb = _add(
        mlflow, "init", _mlflow_init, "create the store and the suite's experiment; one process, before any run"
    )
    _suite_option(verb)
    verb.add_argument("--output", type=Path)
    verb = _add(mlflow, "sync", _mlflow_sync, "bring MLflow up to date with the files; twice makes no duplicates")
    verb.add_argument("--suite", help="default: all")
    verb.add_argument("--pending", action="store_true", help="only runs with mlflow.pending, and the tables")
    verb.add_argument(
        "--watch",
        type=_positive,
        nargs="?",
        const=30,
        metavar="SECONDS",
        help="look for changes every so many seconds (default: %(const)s), until Ctrl-C or SIGTERM",
    )
    verb.add_argument("--until-done", action="store_true", help="with --watch: until all runs of the suite have ended")
    verb.add_argument("--output", type=Path, help="JSON that says what is in step; a server that is down is no failure")
    return parser


def _add(verbs: Any, name: str, function: Any, text: str, writes: Writes | None = None) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(run=function, writes=writes or Writes())
    return verb


def _suite_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--suite", default="demo", help="a file of params/suites (default: demo)")


def _positive(text: str) -> int:
    return _integer(text, 1, 2**31 - 1)


def _quality(text: str) -> int:
    return _integer(text, 1, 95)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def _seed(text: str) -> int:
    return _integer(text, 0, 2**32 - 1)


def _integer(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"expected an integer from {least} to {most}, got {text!r}")
    return int(text)


def _run_options(verb: argparse.ArgumentParser) -> None:
    _suite_option(verb)
    verb.add_argument("--experiment", required=True, help="an experiment that the suite names")
    verb.add_argument("--seed", type=_seed, default=0, help="0 to 4294967295 (default: %(default)s)")
    verb.add_argument("--digest", help="refuse to run if params resolve to another one")


if __name__ == "__main__":
    sys.exit(main())
