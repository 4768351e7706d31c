"""How questions open, in the languages of the descriptions; written for this recipe, not counted from any collection.

Descriptions hold no questions, so a network trained on them alone would take "who" and "warum" for rare, telling words.
Put before a crop, they are in many queries and in no answer, and the network learns to pass over them.
"""

# ruff: noqa: E501 - one list per language, in its own letters

from __future__ import annotations

from typing import Final

QUESTION_WORDS: Final = {
    "en": "what|who|when|where|why|how|which|how many|how much|what is the|what was the|who was|what did|what does|"
    "in what year did|what kind of|what type of|what are|where is|where did|when was|how did|how long|what percentage of|"
    "which of the|whose|what happened to|what do you call|according to what|what were|how old|in which",
    "de": "was|wer|wann|wo|warum|wie|welche|welcher|welches|wie viele|wie viel|was ist|was war|wer war|wen|wem|wessen|"
    "in welchem jahr|welche art von|wo befindet sich|wann wurde|wie lange|wofür|womit|woher|wohin|was sind|"
    "wie heißt|durch was|wie hoch ist|von wem wurde|was für",
    "es": "qué|quién|cuándo|dónde|por qué|cómo|cuál|cuáles|cuántos|cuántas|cuánto|qué es|cuál es|cuál era|quién fue|"
    "en qué año|qué tipo de|dónde se encuentra|cuándo se|de qué|a quién|en qué|cuál fue el|quiénes|cómo se llama",
    "fr": "que|qui|quand|où|pourquoi|comment|quel|quelle|quels|quelles|combien de|qu'est-ce que|qui est|en quelle année|"
    "quel type de|où se trouve|depuis quand|quel est le|quelle est la|à quoi sert|comment s'appelle",
    "it": "che cosa|chi|quando|dove|perché|come|quale|quali|quanti|quanto|che cos'è|chi era|in che anno|che tipo di|"
    "dove si trova|qual è il|qual è la|a cosa serve|come si chiama",
    "ru": "что|кто|когда|где|почему|как|какой|какая|какое|какие|сколько|что такое|кто был|в каком году|какой тип|"
    "где находится|каким образом|кого|чем|для чего|как называется|каков|какова|чья|в какой|на каком|у кого",
    "zh_CN": "什么|谁|什么时候|哪里|为什么|如何|哪个|哪些|多少|是什么|怎么|哪一年|什么类型的|在哪里|有多少|何时|哪种|是谁",
    "ja": "何|誰|いつ|どこ|なぜ|どのように|どの|いくつ|とは何ですか|何年に|どのような|誰が|どこに",
    "ko": "무엇|누가|언제|어디|왜|어떻게|어떤|몇|얼마나|무엇입니까|몇 년에|어디에",
    "pl": "co|kto|kiedy|gdzie|dlaczego|jak|który|która|które|ile|co to jest|w którym roku|jaki rodzaj|jakie",
    "uk": "що|хто|коли|де|чому|як|який|яка|яке|які|скільки|що таке|у якому році|як називається",
    "pt_BR": "o que|quem|quando|onde|por que|como|qual|quais|quantos|quanto|o que é|quem foi|em que ano|que tipo de",
    "da": "hvad|hvem|hvornår|hvor|hvorfor|hvordan|hvilken|hvilke|hvor mange|hvor meget|hvad er|hvilket år|hvilken type",
    "sk": "čo|kto|kedy|kde|prečo|ako|ktorý|ktorá|ktoré|koľko|čo je|v ktorom roku|aký|aká|aké",
}
