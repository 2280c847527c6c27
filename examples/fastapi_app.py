"""A FastAPI service that owes EnOS an event for each inspection: one transaction for both, and a worker in the same process.

pip install 'durable-outbox[async]' fastapi python-multipart uvicorn
uvicorn fastapi_app:app

curl -F device=turbine-7 -F severity=3 -F photo=@photo.jpg http://127.0.0.1:8000/inspections
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox import EnosEvents, Outbox, Refused, Token, Worker, env, migrate, prepare

engine = prepare(create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///inspections.db")))
sessions = async_sessionmaker(engine)
local = os.environ.get("ENOS_IS_LOCAL") == "1"  # a receiver on this machine, without TLS

outbox = Outbox(
    engine,
    spool=os.environ.get("SPOOL", "spool"),
    destinations=[
        EnosEvents(
            name="enos",
            url=os.environ["ENOS_URL"],
            org_id=os.environ["ENOS_ORG_ID"],
            token=Token(os.environ["ENOS_TOKEN_URL"], env("ENOS_APP_KEY"), env("ENOS_APP_SECRET"), allow_plain_http=local),
            allow_plain_http=local,
        )
    ],
)


class Base(DeclarativeBase):
    pass


class Inspection(Base):
    __tablename__ = "inspection"

    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str]
    severity: Mapped[int]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await asyncio.to_thread(migrate.upgrade, outbox.database)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    worker = Worker(outbox)  # has threads of its own; with many replicas, rather run `outbox worker` beside them
    await asyncio.to_thread(worker.start)
    yield
    await asyncio.to_thread(worker.join)  # finishes the uploads in hand
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(Refused)
async def refused(_: Request, error: Exception) -> JSONResponse:
    """What EnOS would not take is told to whoever sent it; the transaction has been rolled back."""
    return JSONResponse({"detail": str(error)}, status_code=422)


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session, session.begin():
        yield session  # commits when the request has been answered well, else rolls back


@app.post("/inspections", status_code=201)
async def inspect(
    session: Annotated[AsyncSession, Depends(session, scope="function")],
    device: Annotated[str, Form()],
    severity: Annotated[int, Form()],
    photo: Annotated[UploadFile, File()],
) -> dict[str, int]:
    inspection = Inspection(device=device, severity=severity)
    session.add(inspection)
    await session.flush()  # the key needs the id
    message = await outbox.aenqueue(
        session,
        "enos",
        {
            "assetId": device,
            "time": time.time_ns() // 1_000_000,
            "events": {"crack": {"severity": severity, "photo": "local://photo"}},
        },
        files={"photo": photo.file},
        key=f"inspection-{inspection.id}",
    )
    return {"inspection": inspection.id, "message": message.id}


@app.get("/outbox")
async def status() -> dict[str, int]:
    """What is waiting: for whoever watches the service."""
    found = await asyncio.to_thread(outbox.status)
    return {name: each.due for name, each in found.destinations.items()}
