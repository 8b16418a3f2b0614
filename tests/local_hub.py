"""In-memory Hugging Face Hub for tests: the endpoints that this project uses, with the real Hub's responses.

Every commit has a hash and stays readable.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import unquote

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from huggingface_hub import constants

# Files are stored in LFS by suffix, or above a size in bytes.
_LFS_SUFFIXES = (".safetensors", ".bin", ".ckpt")
_LFS_SIZE = 10_000_000


class Refusal(HTTPException):
    """An error response of the Hub, with its message and `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(status, message, {"X-Error-Message": message, "X-Error-Code": code})


@dataclass(frozen=True)
class File:
    """Content of a file, in git or in LFS."""

    content: bytes
    lfs: bool = False

    @property
    def oid(self) -> str:
        """Hash by which huggingface_hub recognises an identical file."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """Branches -> commits -> files. `messages` has the commits of all branches in order."""

    private: bool
    sdk: str | None
    branches: dict[str, str] = field(default_factory=dict)
    trees: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        blobs = {path: file.oid for path, file in sorted(files.items())}
        facts = [self.branches.get(branch), blobs, message, len(self.messages)]
        sha = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        self.trees[sha], self.messages[sha], self.branches[branch] = files, message, sha
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.trees:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    @property
    def head(self) -> dict[str, File]:
        return self.trees[self.branches["main"]]

    def contents(self, branch: str = "main") -> dict[str, bytes]:
        """Return all files except the initial .gitattributes."""
        files = self.trees[self.branches[branch]]
        return {name: file.content for name, file in files.items() if name != ".gitattributes"}


class LocalHub:
    """Server as a context manager: `with LocalHub() as hub: HfApi(hub.url, token=hub.user("ann"))`.

    Attributes:
        url: for HF_ENDPOINT.
        repositories: by ("model" or "space", "user/name").
        requests: method and path of all requests, in order.
        rivals: number of next commits that are preceded by a concurrent commit to the same branch.
        broken: whether connections break during uploads and commits.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        self.users: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.rivals, self.broken = 0, False
        # h11: its `receive` gives access to the transport, to break a connection.
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

    def user(self, name: str) -> str:
        """Create an account and return its token."""
        token = f"hf_{secrets.token_hex(17)}"
        self.users[token] = name
        return token

    def reset(self) -> None:
        """Delete all repositories, accounts, recorded requests and faults."""
        for kept in (self.repositories, self.requests, self.users, self.large):
            kept.clear()
        self.rivals, self.broken = 0, False

    def is_the_hub(self, monkeypatch, cache: object) -> None:
        """Redirect this process to this Hub, with `cache` as its download folder."""
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    async def _serve(self, scope: dict, receive, send) -> None:
        # Branch names may contain slashes: keep them quoted for routing.
        path = scope["path"] = scope["raw_path"].decode().partition("?")[0]
        self.requests.append(f"{scope['method']} {path}")
        if self.broken and (scope["method"] == "PUT" or "/commit/" in path):
            await receive()  # the first chunk of the body
            receive.__self__.transport.abort()
        else:
            await self._app(scope, receive, send)

    # Used by the routes.

    def account(self, request: Request) -> str | None:
        """Return the user name of a request, None if anonymous."""
        header = request.headers.get("authorization")
        if header and header.removeprefix("Bearer ") not in self.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.users[header.removeprefix("Bearer ")] if header else None

    def find(self, request: Request, kind: str, repo: str, write: bool = False) -> Repository:
        """Return a repository that the user may read, or write to."""
        account, repository = self.account(request), self.repositories.get((kind, repo))
        owner = account == repo.split("/")[0]
        if repository is None or (repository.private and not owner):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if write and not owner:
            raise Refusal(403, f"Forbidden: pass a token with write access to {repo}")
        return repository

    def commit(self, repository: Repository, branch: str, lines: list[dict]) -> str:
        """Apply a commit atomically."""
        if self.rivals:
            self.rivals -= 1
            rival = {f"rival-{len(repository.messages)}.txt": File(b"somebody else's")}
            parent = repository.trees[repository.branches[branch]]
            repository.commit(branch, parent | rival, "somebody else's commit")
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", repository.branches[branch]) != repository.branches[branch]:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.trees[repository.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                files[value["path"]] = File(self.large[value["oid"]], lfs=True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return repository.commit(branch, files, header["summary"])


def _routes(hub: LocalHub) -> FastAPI:
    app = FastAPI()

    @app.post("/api/repos/create")
    async def create(request: Request) -> dict:
        user, wish = hub.account(request), await request.json()
        kind, repo = wish.get("type", "model"), f"{wish.get('organization') or user}/{wish['name']}"
        if not repo.startswith(f"{user}/"):
            raise Refusal(403, f"You don't have the rights to create {repo}")
        repository = Repository(wish.get("visibility") == "private", wish.get("sdk"))
        repository.commit("main", {".gitattributes": File(b"*.bin filter=lfs")}, "initial commit")
        hub.repositories[kind, repo] = repository
        return {"url": f"{hub.url}/{repo}", "name": repo, "id": repo}

    @app.post("/api/validate-yaml")
    def validate_yaml() -> dict:
        return {"errors": [], "warnings": []}

    @app.get("/api/{kind}s/{user}/{name}")
    @app.get("/api/{kind}s/{user}/{name}/revision/{revision}")
    def info(request: Request, kind: str, user: str, name: str, revision: str = "main") -> dict:
        repository = hub.find(request, kind, f"{user}/{name}")
        sha = repository.resolve(unquote(revision))
        return {"id": f"{user}/{name}", "sha": sha, "private": repository.private}

    @app.post("/api/{kind}s/{user}/{name}/branch/{branch}")
    def create_branch(request: Request, kind: str, user: str, name: str, branch: str) -> dict:
        branches = hub.find(request, kind, f"{user}/{name}", write=True).branches
        branches[unquote(branch)] = branches["main"]
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
                listed[first] = {"type": "directory", "path": start + first, "oid": "0" * 40, "size": 0}
            elif path.startswith(start):
                listed[path] = {"type": "file", "path": path, "oid": file.oid, "size": len(file.content)}
        return list(listed.values())

    @app.post("/api/{kind}s/{user}/{name}/preupload/{revision}")
    async def preupload(request: Request, kind: str, user: str, name: str, revision: str) -> dict:
        repository = hub.find(request, kind, f"{user}/{name}", write=True)
        there, answer = repository.trees[repository.resolve(unquote(revision))], []
        for file in (await request.json())["files"]:
            path, large = file["path"], file["path"].endswith(_LFS_SUFFIXES) or file["size"] > _LFS_SIZE
            facts = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            answer.append(facts | {"oid": there[path].oid if path in there else None})
        return {"files": answer}

    @app.post("/{user}/{name}.git/info/lfs/objects/batch")
    @app.post("/{kind}s/{user}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request, user: str, name: str, kind: str = "model") -> dict:
        hub.find(request, kind, f"{user}/{name}", write=True)
        objects = []
        for wanted in (await request.json())["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in hub.large:
                # As on the real Hub, the URL itself grants write access: no token is sent there.
                entry["actions"] = {"upload": {"href": f"{hub.url}/upload/{wanted['oid']}"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    @app.put("/upload/{oid}")
    async def upload(request: Request, oid: str) -> Response:
        content = await request.body()
        assert "authorization" not in request.headers and hashlib.sha256(content).hexdigest() == oid
        hub.large[oid] = content
        return Response()

    @app.post("/api/{kind}s/{user}/{name}/commit/{revision}")
    async def commit(request: Request, kind: str, user: str, name: str, revision: str) -> dict:
        repository = hub.find(request, kind, f"{user}/{name}", write=True)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        sha = hub.commit(repository, unquote(revision), lines)
        url = f"{hub.url}/{'' if kind == 'model' else kind + 's/'}{user}/{name}/commit/{sha}"
        return {"success": True, "commitOid": sha, "commitUrl": url}

    @app.api_route("/{user}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    @app.api_route("/{kind}s/{user}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve(
        request: Request, user: str, name: str, revision: str, path: str, kind: str = "model"
    ) -> Response:
        repository = hub.find(request, kind, f"{user}/{name}")
        sha = repository.resolve(unquote(revision))
        file = repository.trees[sha].get(unquote(path))
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"', "Content-Length": str(len(file.content))}
        return Response(b"" if request.method == "HEAD" else file.content, headers=headers)

    return app
