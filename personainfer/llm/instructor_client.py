"""Calls of litellm through instructor: it asks for the form of a reply, and again after a bad one."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict

from .. import event_loop
from ..exceptions import PersonaInferError
from .dialect import FORMS, Dialect, fold_system
from .openai_protocol import Json

Call = Callable[..., Awaitable[Any]]


class InstructorClient:
    """Makes calls of litellm: through instructor if a schema is asked for, else as they are.

    Args:
        litellm: the library.
    """

    def __init__(self, litellm: Any) -> None:
        self._litellm = litellm
        self._models: dict[str, _InstructorModels] = {}  # by the JSON schema
        self._clients: dict[str, Any] = {}  # by the form

    def learn(self, schema: type[BaseModel], form: Json) -> None:
        """Note that requests which ask for this JSON schema ask for this pydantic model."""
        self._models[json.dumps(form)] = _InstructorModels(schema, form)

    async def ask(self, fields: Json, bad: str | None, dialect: Dialect) -> Any:
        """Make one call, through instructor if a schema is asked for. Return litellm's reply.

        If this is a re-ask, the retry policy has added the bad reply as the last turn. instructor is given it
        as its first attempt, refuses it, and asks again in its own words.

        Args:
            fields: the arguments of litellm's call.
            bad: the bad reply, which is no longer in `fields`; None: there is none.
            dialect: how the request is written.
        """
        models, form = self._asked_models(fields), FORMS[dialect.form]
        call: Call = self._call_without_system if dialect.folds_system else self._call
        if models is None:
            return await call(**fields)
        from instructor.core.exceptions import IncompleteOutputException, InstructorRetryException
        from openai import OpenAIError

        schema = models.first
        if bad is not None:
            schema, call = models.again, self._after(bad, call, form)
        client = self._client(call, form)
        try:
            _, reply = await client.create_with_completion(
                response_model=schema, max_retries=0 if bad is None else 1, **fields
            )
        except IncompleteOutputException as error:
            return error.last_completion
        except InstructorRetryException as error:
            cause = error.__cause__
            is_of_the_call = isinstance(cause, OpenAIError | PersonaInferError)
            if cause is not None and (is_of_the_call or error.last_completion is None):
                raise cause from None
            return error.last_completion  # read again by our own reader, which takes more
        return reply

    def _asked_models(self, fields: Json) -> _InstructorModels | None:
        """Take the schema that a request asks for out of its fields, and return its models for instructor.

        instructor puts the schema in again. None: no schema is asked for.
        """
        asked = fields.pop("response_format", None)
        tools = fields.pop("tools", None)
        fields.pop("tool_choice", None)
        if not (asked or tools):
            return None
        # Not by its name: two schemas may have one name.
        schema = asked["json_schema"]["schema"] if asked else tools[0]["function"]["parameters"]
        return self._models[json.dumps(schema)]

    def _after(self, bad: str, then: Call, form: str) -> Call:
        """Return a completion function whose first reply is the bad one that the model gave before."""
        message: Json = {"role": "assistant", "content": bad}
        if form == "tools":
            function = {"name": "reply", "arguments": bad}
            message = {"role": "assistant", "content": None}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        choice = {"message": message, "finish_reason": "stop"}
        earlier = [self._litellm.ModelResponse(choices=[choice])]

        async def call(**fields: Any) -> Any:
            return earlier.pop() if earlier else await then(**fields)

        return call

    def _client(self, call: Call, form: str) -> Any:
        """Return instructor's client around a call of litellm, in the mode for this form.

        The client around `_call` is made once for each form.
        """
        import instructor

        if call == self._call and form in self._clients:
            return self._clients[form]
        mode = {
            "json_schema": instructor.Mode.JSON_SCHEMA,
            "json_object": instructor.Mode.JSON,
            "tools": instructor.Mode.TOOLS,
            "text": instructor.Mode.MD_JSON,
        }[form]
        client = instructor.from_litellm(call, mode=mode, async_client=True)
        _keep_replies_out_of_logs()
        if call == self._call:
            self._clients[form] = client
        return client

    async def _call(self, **fields: Any) -> Any:
        return await self._litellm.acompletion(
            **fields, num_retries=0, max_retries=0, caching=False
        )

    async def _call_without_system(self, **fields: Any) -> Any:
        fold_system(fields["messages"])
        return await self._call(**fields)


class _NotOnTheLoop(logging.Filter):
    """Keeps a logger silent about our own calls: instructor logs replies and refusals, which hold texts."""

    def filter(self, record: logging.LogRecord) -> bool:
        thread = event_loop.thread()
        return thread is None or record.thread != thread.ident


_not_on_the_loop = _NotOnTheLoop()


def _keep_replies_out_of_logs() -> None:
    for name in ("instructor", *logging.root.manager.loggerDict):
        if name.split(".")[0] == "instructor":
            # The filter of a logger does not hold for those below it.
            logging.getLogger(name).addFilter(_not_on_the_loop)


class _InstructorModels:
    """A schema as two models for instructor, with the JSON schema that strict providers take.

    Both are made once, of instructor's own class: of any other, instructor would make one for each call.
    """

    def __init__(self, schema: type[BaseModel], form: Json) -> None:
        self._schema = schema
        self._form = json.dumps({"title": schema.__name__, **form})

    @cached_property
    def first(self) -> type[BaseModel]:
        """The model for the first call. It takes any object, since our own reader reads the reply."""
        return self._made_of(_AnyObject)

    @cached_property
    def again(self) -> type[BaseModel]:
        """The model for a re-ask: it finds what is wrong with the reply before."""
        return self._made_of(self._schema)

    def _made_of(self, base: type[BaseModel]) -> type[BaseModel]:
        import instructor

        def model_json_schema(*_: Any, **__: Any) -> Json:
            return json.loads(self._form)  # type: ignore[no-any-return]

        schema = self._schema
        fields: Json = {"__module__": schema.__module__, "__doc__": schema.__doc__}
        fields["model_json_schema"] = staticmethod(model_json_schema)
        return instructor.openai_schema(type(schema.__name__, (base,), fields))  # type: ignore[no-any-return]


class _AnyObject(BaseModel):
    model_config = ConfigDict(extra="allow")
