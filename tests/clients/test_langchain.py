"""`langchain-openai` against Skald: completions, chats and embeddings, whole, streamed and in batches."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

PROMPT = "The wolf said to the little girl,"


@pytest.fixture(scope="module")
def served(base_url, model):
    return {"base_url": f"{base_url}/v1", "api_key": "none", "model": model}


@pytest.fixture(scope="module")
def llm(served):
    return OpenAI(**served, max_tokens=16, temperature=0)


@pytest.fixture(scope="module")
def chat(served):
    return ChatOpenAI(**served, max_tokens=16, temperature=0)


def test_a_completion_is_the_same_streamed(llm):
    whole = llm.invoke(PROMPT)
    pieces = list(llm.stream(PROMPT))
    assert whole and "".join(pieces) == whole
    assert len(pieces) > 5


def test_a_batch_is_what_each_would_be_alone(llm):
    prompts = [PROMPT, "Once upon a time", "The dragon"]
    assert llm.batch(prompts) == [llm.invoke(prompt) for prompt in prompts]
    generated = llm.generate(prompts)
    assert [row[0].text for row in generated.generations] == [llm.invoke(prompt) for prompt in prompts]
    assert generated.llm_output["token_usage"]["completion_tokens"] == 48


def test_its_own_fields_are_passed_on(served, llm):
    several = OpenAI(**served, max_tokens=8, n=2, best_of=3, temperature=1, seed=1)
    assert len({generation.text for generation in several.generate([PROMPT]).generations[0]}) == 2
    scored = OpenAI(**served, max_tokens=4, temperature=0, logprobs=2).generate([PROMPT])
    assert len(scored.generations[0][0].generation_info["logprobs"]["tokens"]) == 4
    narrow = OpenAI(**served, max_tokens=16, temperature=1, extra_body={"top_k": 1})
    assert narrow.invoke(PROMPT) == llm.invoke(PROMPT)
    stop = llm.invoke(PROMPT)[4:8]
    assert llm.invoke(PROMPT, stop=[stop]) == llm.invoke(PROMPT).split(stop)[0]


def test_a_chain_of_a_template_and_the_model(llm):
    chain = PromptTemplate.from_template("The {animal} said to the little girl,") | llm | StrOutputParser()
    assert chain.invoke({"animal": "wolf"}) == llm.invoke(PROMPT)


@pytest.mark.asyncio
async def test_asynchronously_it_is_the_same(llm, chat):
    assert await llm.ainvoke(PROMPT) == llm.invoke(PROMPT)
    assert "".join([piece async for piece in llm.astream(PROMPT)]) == llm.invoke(PROMPT)
    assert (await chat.ainvoke(PROMPT)).content == chat.invoke(PROMPT).content


def test_a_chat_answers_and_tells_of_its_tokens(chat, model):
    answer = chat.invoke([SystemMessage("You tell fairy tales."), HumanMessage(PROMPT)])
    assert isinstance(answer, AIMessage) and answer.content
    assert 0 < answer.usage_metadata["output_tokens"] <= 16
    assert answer.usage_metadata["input_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.response_metadata["model_name"] == model


def test_a_chat_is_the_same_streamed(chat):
    chunks = list(chat.stream(PROMPT, stream_usage=True))
    whole = sum(chunks[1:], start=chunks[0])
    assert whole.content == chat.invoke(PROMPT).content
    assert whole.usage_metadata["output_tokens"] > 0


def test_a_chain_of_a_conversation(chat):
    template = ChatPromptTemplate.from_messages([("system", "You tell fairy tales."), ("human", "{question}")])
    assert (template | chat | StrOutputParser()).invoke({"question": "Who was the king?"})


def test_structured_output_follows_its_schema(served):
    schema = {
        "title": "Tale",
        "description": "A tale in short.",
        "type": "object",
        "properties": {"animal": {"type": "string", "enum": ["fox", "bear"]}},
        "required": ["animal"],
        "additionalProperties": False,
    }
    chat = ChatOpenAI(**served, max_tokens=64, seed=1)
    answer = chat.with_structured_output(schema, method="json_schema", strict=True).invoke(PROMPT)
    assert answer["animal"] in ("fox", "bear")


def test_embeddings_of_documents_and_queries(served, info):
    embeddings = OpenAIEmbeddings(**served, check_embedding_ctx_length=False)
    query = embeddings.embed_query(PROMPT)
    documents = embeddings.embed_documents([PROMPT, "The dragon"])
    assert len(query) == info["model"]["n_embd"]
    assert documents[0] == query != documents[1]
