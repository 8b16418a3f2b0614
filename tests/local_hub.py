"""A Hub on this machine: what huggingface_hub asks for in this project, answered as the real one does.

Repositories live in memory; every commit has a hash and stays readable. What can go wrong on the way is
switched on by attributes (`rivals`, `cut_uploads` ...).
"""

import base64
import fnmatch
import hashlib
import json
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

_LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".pkl", ".zip", ".parquet")
_LFS_SIZE = 10_000_000
_COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


class Refusal(Exception):
    """An answer of the Hub that is no success: its status, `X-Error-Code` and message."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class File:
    """Content under a path: a blob of git, or one of the large file storage behind a pointer."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        """What git calls it: of a large file, the blob of its pointer."""
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def pointer(self) -> bytes:
        facts = f"oid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return b"version https://git-lfs.github.com/spec/v1\n" + facts.encode()

    @property
    def oid(self) -> str:
        return self.sha256 if self.lfs else self.blob

    def entry(self, path: str) -> dict:
        """As a listing shows it."""
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry


@dataclass
class Repository:
    """Branches -> commits -> files. `messages` has the commits of all branches as they were made."""

    private: bool
    settings: dict
    branches: dict[str, str] = field(default_factory=dict)
    trees: dict[str, dict[str, File]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        parent = self.branches.get(branch)
        blobs = {path: file.blob for path, file in sorted(files.items())}
        sha = hashlib.sha1(json.dumps([parent, blobs, message, len(self.messages)]).encode()).hexdigest()
        self.trees[sha], self.parents[sha], self.messages[sha] = files, parent, message
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision.removeprefix("refs/heads/"), revision)
        if sha not in self.trees:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    @property
    def head(self) -> dict[str, File]:
        return self.trees[self.branches["main"]]


class LocalHub:
    """The server, as a context manager: `with LocalHub() as hub: HfApi(hub.url, token=hub.user("ann"))`.

    Attributes:
        url: its address, for HF_ENDPOINT.
        repositories: by ("model" or "space", "user/name").
        requests: method and path of everything that was asked, in order.
        rivals: before so many of the next commits somebody else commits to the same branch.
        cut_uploads, cut_commits: so many of the next connections break halfway through what is sent.
        lost_answers: so many of the next commits are made, and the connection breaks before the answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        self.rivals = self.cut_uploads = self.cut_commits = self.lost_answers = 0
        self._users: dict[str, tuple[str, bool]] = {}
        self._large: dict[str, bytes] = {}
        # h11: a broken connection is cut at its transport, which is reached through uvicorn's own `receive`.
        options = {"host": "127.0.0.1", "port": 0, "http": "h11", "proxy_headers": False, "lifespan": "off"}
        config = uvicorn.Config(self._serve, interface="asgi3", log_level="error", **options)
        self._server = uvicorn.Server(config)
        self._app = _routes(self)

    def __enter__(self) -> "LocalHub":
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_) -> None:
        self._server.should_exit = True
        self._thread.join()

    def user(self, name: str, may_write: bool = True) -> str:
        """Make an account; its token."""
        token = f"hf_{secrets.token_hex(17)}"
        self._users[token] = (name, may_write)
        return token

    def reset(self) -> None:
        """As new: no repositories, no accounts, nothing goes wrong, and nothing was asked yet."""
        for kept in (self.repositories, self.requests, self._users, self._large):
            kept.clear()
        self.calm()

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        self.rivals = self.cut_uploads = self.cut_commits = self.lost_answers = 0

    def environment(self, token: str | None, home: object) -> dict[str, str]:
        """For a process that is to take this for the Hub, with a folder for what it keeps."""
        variables = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return variables | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token or ""}

    async def _serve(self, scope: dict, receive, send) -> None:
        if scope["type"] != "http":
            return
        # Branches may have slashes in their names: they are kept quoted until a route is found.
        path = scope["path"] = scope["raw_path"].decode().partition("?")[0]
        self.requests.append(f"{scope['method']} {path}")
        commits = scope["method"] == "POST" and "/commit/" in path
        if scope["method"] == "PUT" and self.cut_uploads or commits and self.cut_commits:
            if commits:
                self.cut_commits -= 1
            else:
                self.cut_uploads -= 1
            await receive()  # the first piece of what is sent
            receive.__self__.transport.abort()
            return
        if commits and self.lost_answers:
            self.lost_answers -= 1
            transport = receive.__self__.transport

            async def send(_):
                transport.abort()

        await self._app(scope, receive, send)

    # What the routes ask.

    def account(self, request: Request) -> tuple[str, bool] | None:
        """Name and right to write of who asks, None for a stranger."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        account = self._users.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def find(self, request: Request, kind: str, repo: str, write: bool = False) -> Repository:
        """The repository, for who may see it, or write to it."""
        account, repository = self.account(request), self.repositories.get((kind, repo))
        owner = account is not None and account[0] == repo.split("/")[0]
        if repository is None or (repository.private and not owner):
            if account is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if write and account is None:
            raise Refusal(401, "Invalid username or password.")
        if write and not (owner and account[1]):
            raise Refusal(403, f"Forbidden: pass a token with write access to {repo}")
        return repository

    def create(self, account: tuple[str, bool], wish: dict) -> dict:
        user, may_write = account
        kind, owner = wish.get("type", "model"), wish.get("organization") or user
        repo = f"{owner}/{wish['name']}"
        if owner != user or not may_write:
            raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        if (kind, repo) in self.repositories:
            raise Refusal(409, f"You already created this {kind} repo")
        settings = {key: wish[key] for key in ("sdk", "variables", "hardware") if key in wish}
        repository = Repository(wish.get("visibility") == "private", settings)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LFS_SUFFIXES)
        repository.commit("main", {".gitattributes": File(attributes.encode(), False)}, "initial commit")
        self.repositories[kind, repo] = repository
        return {"url": f"{self.url}/{_prefix(kind)}{repo}", "name": repo, "id": repo}

    def commit(self, repository: Repository, branch: str, lines: list[dict]) -> str:
        """All of a commit or nothing of it."""
        if branch not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if self.rivals:
            self.rivals -= 1
            files = dict(repository.trees[repository.branches[branch]])
            files[f"rival-{len(repository.messages)}.txt"] = File(b"somebody else's", False)
            repository.commit(branch, files, "somebody else's commit")
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", repository.branches[branch]) != repository.branches[branch]:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.trees[repository.branches[branch]])
        for line in lines:
            value = line["value"]
            path = value.get("path")
            if line["key"] == "file":
                files[path] = File(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self._large:
                    raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = File(self._large[value["oid"]], True)
            elif line["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        return repository.commit(branch, files, header["summary"])

    def has_large(self, oid: str) -> bool:
        return oid in self._large

    def store_large(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "The SHA256 of what came is another")
        self._large[oid] = content


def _routes(hub: LocalHub) -> FastAPI:
    app = FastAPI()

    @app.exception_handler(Refusal)
    def refuse(_, refusal: Refusal) -> JSONResponse:
        return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)

    @app.post("/api/repos/create")
    async def create(request: Request) -> dict:
        account = hub.account(request)
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        return hub.create(account, await request.json())

    @app.post("/api/validate-yaml")
    async def validate_yaml(request: Request) -> JSONResponse:
        card = await request.json()
        errors = [{"message": error} for error in _check_card(card["content"], card["repoType"])]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    @app.get("/api/{kind}s/{user}/{name}")
    @app.get("/api/{kind}s/{user}/{name}/revision/{revision}")
    def info(request: Request, kind: str, user: str, name: str, revision: str = "main") -> dict:
        repository = hub.find(request, kind, f"{user}/{name}")
        sha = repository.resolve(unquote(revision))
        siblings = [{"rfilename": path} for path in sorted(repository.trees[sha])]
        facts = {"id": f"{user}/{name}", "sha": sha, "private": repository.private, "siblings": siblings}
        return facts | {"tags": [], "downloads": 0, "likes": 0, **repository.settings}

    @app.post("/api/{kind}s/{user}/{name}/branch/{branch}")
    async def create_branch(request: Request, kind: str, user: str, name: str, branch: str) -> dict:
        repository, branch = hub.find(request, kind, f"{user}/{name}", write=True), unquote(branch)
        if branch in repository.branches:
            raise Refusal(409, f"Reference already exists: {branch}")
        start = (await request.json()).get("startingPoint", "main")
        repository.branches[branch] = repository.resolve(start)
        return {}

    @app.get("/api/{kind}s/{user}/{name}/tree/{revision}")
    @app.get("/api/{kind}s/{user}/{name}/tree/{revision}/{folder}")
    def tree(
        request: Request, kind: str, user: str, name: str, revision: str, folder: str = ""
    ) -> list[dict]:
        repository, start = hub.find(request, kind, f"{user}/{name}"), f"{unquote(folder)}/".lstrip("/")
        recursive, listed = request.query_params.get("recursive", "").lower() in ("true", "1"), {}
        for path, file in sorted(repository.trees[repository.resolve(unquote(revision))].items()):
            first, slash, _ = path.removeprefix(start).partition("/")
            if path.startswith(start) and slash and not recursive:
                inner = start + first
                listed[inner] = {"type": "directory", "path": inner, "oid": "0" * 40, "size": 0}
            elif path.startswith(start):
                listed[path] = file.entry(path)
        return list(listed.values())

    @app.post("/api/{kind}s/{user}/{name}/preupload/{revision}")
    async def preupload(request: Request, kind: str, user: str, name: str, revision: str) -> dict:
        repository = hub.find(request, kind, f"{user}/{name}", write=True)
        there = repository.trees[repository.resolve(unquote(revision))]
        ignored = there[".gitignore"].content.decode().split() if ".gitignore" in there else []
        answer = []
        for file in (await request.json())["files"]:
            path, large = file["path"], file["path"].endswith(_LFS_SUFFIXES) or file["size"] > _LFS_SIZE
            answer.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": any(fnmatch.fnmatch(path, pattern) for pattern in ignored),
                    "oid": there[path].oid if path in there else None,
                }
            )
        return {"files": answer}

    @app.post("/{user}/{name}.git/info/lfs/objects/batch")
    @app.post("/{kind}s/{user}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request, user: str, name: str, kind: str = "model") -> dict:
        hub.find(request, kind, f"{user}/{name}", write=True)
        objects = []
        for wanted in (await request.json())["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if not hub.has_large(wanted["oid"]):
                # As on the real Hub, the address itself is the right to write to it: no token goes there.
                actions = {"upload": f"{hub.url}/upload/{wanted['oid']}", "verify": f"{hub.url}/verify"}
                entry["actions"] = {action: {"href": href} for action, href in actions.items()}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    @app.put("/upload/{oid}")
    async def upload(request: Request, oid: str) -> Response:
        assert "authorization" not in request.headers
        hub.store_large(oid, await request.body())
        return Response()

    @app.post("/verify")
    async def verify(request: Request) -> Response:
        return Response(status_code=200 if hub.has_large((await request.json())["oid"]) else 404)

    @app.post("/api/{kind}s/{user}/{name}/commit/{revision}")
    async def commit(request: Request, kind: str, user: str, name: str, revision: str) -> dict:
        repository = hub.find(request, kind, f"{user}/{name}", write=True)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        sha = hub.commit(repository, unquote(revision), lines)
        url = f"{hub.url}/{_prefix(kind)}{user}/{name}/commit/{sha}"
        return {"success": True, "commitOid": sha, "commitUrl": url}

    @app.api_route("/{user}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    @app.api_route("/{kind}s/{user}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve(
        request: Request, user: str, name: str, revision: str, path: str, kind: str = "model"
    ) -> Response:
        repository = hub.find(request, kind, f"{user}/{name}")
        sha, path = repository.resolve(unquote(revision)), unquote(path)
        file = repository.trees[sha].get(path)
        if file is None:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            return Response(status_code=404, headers={**refusal.headers, "X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"', "Content-Length": str(len(file.content))}
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(PurePosixPath(path).name)}"
        if file.lfs:
            headers |= {"X-Linked-ETag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
        return Response(b"" if request.method == "HEAD" else file.content, headers=headers)

    return app


def _prefix(kind: str) -> str:
    return "" if kind == "model" else f"{kind}s/"


def _check_card(text: str, kind: str) -> list[str]:
    """Errors in the front matter of a README.md, the commonest of the Hub's own."""
    found = re.match(r"\A---\n(.*?)\n---(\n|\Z)", text, re.DOTALL)
    facts = yaml.safe_load(found[1]) if found else {}
    if kind != "space":
        return []
    errors = []
    if facts.get("sdk") not in ("gradio", "docker", "static"):
        errors.append('"sdk" must be one of [gradio, docker, static]')
    if {facts.get("colorFrom", "red"), facts.get("colorTo", "red")} - _COLOURS:
        errors.append(f'"colorFrom" and "colorTo" must be of {_COLOURS}')
    if len(facts.get("short_description", "")) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    return errors
