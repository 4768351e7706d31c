"""A process that has a Ray cluster of its own: `python -m tests.ray.driver encode CORPUS TARGET`, or `serve PORT`.

It prints one line of JSON when it has done what it should; `serve` goes on until its input ends.
"""

import argparse
import json
import sys

import ray
from ray import serve

from m3_integrations.ray import encode_corpus, read_jsonl, serve_encoder


def encode(args: argparse.Namespace) -> None:
    settings = {"prefer_grpc": False} if args.target.startswith("http") else None
    try:
        report = encode_corpus(
            read_jsonl([args.corpus]), args.target, model="tiny", n_workers=2, cpus_per_worker=1,
            batch_size=args.batch_size, encoder_settings={"max_length": args.max_length}, store_settings=settings,
        )  # fmt: skip
    except ValueError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    print(json.dumps({"n_encoded": report.n_encoded, "n_there": report.n_there}), flush=True)


def offer(args: argparse.Namespace) -> None:
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    serve.run(serve_encoder("tiny", n_replicas=2))
    print(json.dumps({"url": f"http://127.0.0.1:{args.port}"}), flush=True)
    sys.stdin.read()
    serve.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    encoding = commands.add_parser("encode")
    encoding.add_argument("corpus")
    encoding.add_argument("target")
    encoding.add_argument("--batch-size", type=int, default=50)
    encoding.add_argument("--max-length", type=int, default=512)
    encoding.set_defaults(run=encode)
    serving = commands.add_parser("serve")
    serving.add_argument("port", type=int)
    serving.set_defaults(run=offer)
    args = parser.parse_args()
    # As many logical CPUs as reading, splitting and two workers want: with two of them all would wait for ever.
    ray.init(num_cpus=6, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        args.run(args)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
