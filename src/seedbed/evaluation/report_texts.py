"""Hold the words of a run's report, English and Chinese, for readers who see such figures for the first time.

What is shown, and in which order, is decided in `report.py`. Braces name values that are filled in there.
"""

from __future__ import annotations

from typing import Final

__all__ = ["KNOWS", "LABELS", "PARAGRAPHS"]

LABELS: Final[dict[str, tuple[str, str]]] = {
    "title": ("Pretraining report", "预训练报告"),
    "result": ("What came out", "结果"),
    "curve": ("How the loss fell", "损失曲线"),
    "continued": ("What was gained, and what was forgotten", "学到了什么，遗忘了什么"),
    "beside": ("Beside what the text alone makes possible", "与语料基线对比"),
    "samples": ("Before and after training", "训练前后的样例"),
    "corpus": ("The text", "语料"),
    "tokenizer": ("The tokenizer", "分词器"),
    "model": ("The model", "模型"),
    "training": ("The training", "训练过程"),
    "reproduce": ("How to get this again", "如何复现"),
    # Charts
    "loss": ("loss", "损失"),
    "loss_chart": ("Loss while training, with the baselines", "训练中的损失与基线"),
    "loss_axis": ("loss (nats per target)", "损失（奈特/目标）"),
    "step": ("step", "步"),
    "train_loss": ("training, smoothed", "训练（平滑）"),
    "train_raw": ("training, each step", "训练（每步）"),
    "valid_loss": ("validation", "验证"),
    "domains_chart": ("Validation loss on the new and the old text", "新旧文本上的验证损失"),
    "new_text": ("new text", "新文本"),
    "old_text": ("old text", "旧文本"),
    "limit": ("limit on forgetting", "遗忘上限"),
    "loss_before": ("loss before", "训练前损失"),
    "loss_after": ("loss after", "训练后损失"),
    "change": ("change, nats", "变化（奈特）"),
    "uniform": ("uniform", "均匀"),
    "chance": ("chance", "随机"),
    "unigram": ("unigram", "一元"),
    "bigram": ("bigram", "二元"),
    "this_model": ("this model", "本模型"),
    "learning_rate": ("Learning rate", "学习率"),
    "throughput": ("Throughput", "吞吐量"),
    "throughput_axis": ("tokens per second", "词元/秒"),
    # Figures
    "validation_loss": ("validation loss, nats", "验证损失（奈特）"),
    "under_unigram": ("nats below unigram", "低于一元基线（奈特）"),
    "accuracy": ("right at first guess", "首选正确率"),
    "accuracies": ("right at first guess / in five", "首选 / 前五正确率"),
    "perplexity": ("perplexity", "困惑度"),
    "tokens_per_second": ("tokens per second", "词元/秒"),
    "train_time": ("training time", "训练时间"),
    "parameters": ("parameters", "参数量"),
    "knows": ("what it knows", "知道什么"),
    "predictor": ("predictor", "预测者"),
    "term": ("part of the loss", "损失的组成部分"),
    "terms_chart": ("{term}: loss and baselines", "{term}：损失与基线"),
    # Samples
    "prompt": ("text given", "给出的文本"),
    "before": ("before", "训练前"),
    "after": ("after", "训练后"),
    "truth": ("the author wrote", "原文"),
    # Tables
    "split": ("split", "划分"),
    "documents": ("documents", "文档"),
    "lines": ("lines", "行"),
    "characters": ("characters", "字符"),
    "text_size": ("text", "文本"),
    "tokens": ("tokens", "词元"),
    "train": ("training", "训练"),
    "validation": ("validation", "验证"),
    "test": ("test", "测试"),
    "left_out": ("left out, and why", "剔除的内容及原因"),
    "count": ("count", "数量"),
    "language": ("language of lines", "行的语言"),
    "all": ("all", "全部"),
    "chinese": ("Chinese", "中文"),
    "other": ("other", "其他"),
    "bytes_per_token": ("bytes per token", "每词元字节数"),
    "tokens_per_word": ("tokens per word", "每词词元数"),
    "unknown_rate": ("unknown", "未知率"),
    "property": ("property", "项目"),
    "value": ("value", "值"),
    "steps": ("steps", "步数"),
    "family": ("family", "模型族"),
    "objective": ("objective", "训练目标"),
    "han_fraction": ("Chinese share of letters", "汉字占比"),
    "files": ("files read", "读取的文件"),
    "preset": ("preset", "预设"),
    "num_layers": ("layers", "层数"),
    "hidden_size": ("width", "宽度"),
    "num_heads": ("attention heads", "注意力头数"),
    "row_length": ("tokens in a row", "每行词元数"),
    "system": ("system", "系统"),
    "device": ("device", "设备"),
    "device_name": ("processor", "处理器"),
    "cpu_capability": ("processor instructions", "处理器指令集"),
    "threads": ("threads", "线程数"),
    "precision": ("number type", "数值类型"),
    "byteorder": ("byte order", "字节序"),
}

PARAGRAPHS: Final[dict[str, tuple[str, str]]] = {
    "above_unigram": (
        "The loss is not clearly below the unigram baseline: so far the model knows little more than how often each"
        " token occurs. In a short run this is a matter of time; in a long one, look at the learning rate.",
        "损失没有明显低于一元基线：目前模型只学到了每个词元出现的频率。若训练很短，多训练一些即可；若已训练很"
        "久，请检查学习率。",
    ),
    "skipped": (
        "{count} steps had gradients that were not finite; they changed nothing, and their rows were passed over: windows"
        " {windows}.",
        "有 {count} 步的梯度不是有限值；这些步没有改变任何权重，其数据行已跳过：第 {windows} 窗。",
    ),
    "rolled_back": (
        "After such steps in a row the run went back to the weights of step {to} and skipped the rows up to step {window};"
        " metrics.jsonl lists the rows of the bad steps. A lower learning rate is the usual remedy.",
        "连续出现这样的步之后，训练退回第 {to} 步的权重，并跳过直到第 {window} 步的数据行；出错各步的数据行列在 metrics.jsonl"
        " 中。通常降低学习率即可。",
    ),
    "above_bigram": (
        "The loss is {unigram:.2f} nats below the unigram baseline, not yet below the bigram: the model has begun to use"
        " context, but knows less than a table of neighbouring pairs would. Longer training is the usual remedy.",
        "损失比一元基线低 {unigram:.2f} 奈特，但还没有低于二元基线：模型已开始利用上下文，但还不如一张相邻词对"
        "表。通常继续训练即可改善。",
    ),
    "below_bigram": (
        "The loss is {unigram:.2f} nats below the unigram baseline and {bigram:.2f} below the bigram: the model uses"
        " more of the context than the one token beside the gap.",
        "损失比一元基线低 {unigram:.2f} 奈特，比二元基线低 {bigram:.2f} 奈特：模型利用的上下文已超过相邻的一个词元。",
    ),
    "curve": (
        "The loss is the model's surprise at the right answer, in nats; lower is better. Dashed lines are what simple"
        " counting reaches on the same targets. Validation text is never trained on: when its loss turns up while the"
        " training loss falls, the model has begun to learn the training text by heart.",
        "损失表示模型对正确答案的意外程度，单位为奈特，越低越好。虚线是在相同目标上仅靠计数所能达到的损失。验"
        "证文本从不参与训练：如果训练损失下降而验证损失回升，说明模型开始死记训练文本。",
    ),
    "continued": (
        "The run went on from a finished model. Each curve is scored at its own stored targets, the same ones from before the"
        " first step (step 0) to the end, so a fall on the new text is what was gained and a rise on the old text is what was"
        " forgotten. The two levels do not compare with each other: the texts differ. The figures after training are those"
        " of the exported weights.",
        "本次训练从一个已训练好的模型继续。两条曲线各自在固定的目标上计算，从第一步之前（第 0 步）到结束始终相同：新文本"
        "上的下降即学到的，旧文本上的上升即遗忘的。两条曲线的高低不能互相比较，因为文本不同。训练后的数字属于导出的权重。",
    ),
    "beside": (
        "All rows are scored at the same {targets} targets of the validation text. Perplexity is e to the loss: among how"
        " many equally likely tokens the predictor still hesitates. Losses compare only between models with one"
        " tokenizer; across tokenizers use bits per byte.",
        "各行都在验证文本的同样 {targets} 个目标上计算。困惑度是 e 的损失次方，即预测者仍在多少个等可能的词元"
        "之间犹豫。只有使用同一分词器的模型才能比较损失；不同分词器之间请比较每字节比特数。",
    ),
    "beside_terms": (
        "The loss is a weighted sum of these parts. Each is scored at its own targets, the same for every row of the"
        " validation text, and stands beside what can be had without a model: counting tokens, or guessing. Parts of different"
        " kinds do not compare with each other.",
        "损失是这些部分的加权和。每一部分都在各自固定的验证目标上计算，并与不用模型所能达到的水平（统计词频或随机猜测）对照。"
        "不同种类的部分之间不能互相比较。",
    ),
    "masked_lm": (
        "Masked language modelling: 15 % of the tokens are hidden, and the model names them from both sides.",
        "掩码语言模型：遮住 15% 的词元，模型根据左右两侧的文本猜出它们。",
    ),
    "causal_lm": (
        "Causal language modelling: the model predicts each token from those before it.",
        "因果语言模型：模型根据前面的词元预测下一个词元。",
    ),
    "fill_in_middle": (
        "Fill-in-the-middle: as causal language modelling, with a piece of some documents moved to their end, so that the model"
        " learns to complete gaps.",
        "中间填充：与因果语言模型相同，但部分文档中间的一段被移到末尾，模型由此学会补全空缺。",
    ),
    "prefix_lm": (
        "Prefix language modelling: the model reads the first part of a row from both sides and predicts the rest.",
        "前缀语言模型：一行的前一部分双向可见，模型依次预测其余部分。",
    ),
    "masked_next_token": (
        "Masked next-token prediction: hidden tokens are predicted from the place before them, with both sides in view.",
        "掩码下一词预测：在双向可见的情况下，从被遮词元的前一个位置预测它。",
    ),
    "hybrid": (
        "Masked-causal hybrid: some rows are read from left to right, in the others tokens are hidden; one model serves both"
        " uses.",
        "掩码与因果混合：一部分行从左到右预测，其余的行遮住词元再预测；同一个模型兼作两用。",
    ),
    "masked_diffusion": (
        "Masked diffusion: any share of a row, from one token to all, is hidden. The loss bounds the nats a token of the text.",
        "掩码扩散：遮住一行中任意比例的词元，从一个到全部。该损失是每词元奈特数的上界。",
    ),
    "next_sentence": (
        "Next sentence prediction: does the second run of sentences follow the first, or is it from another document? Usually"
        " beside masked language modelling.",
        "下一句预测：判断第二段句子是否紧接第一段，还是来自另一篇文档；通常与掩码语言模型同时训练。",
    ),
    "sentence_order": (
        "Sentence order prediction: do two runs of sentences stand in their order, or exchanged? Usually beside masked"
        " language modelling.",
        "句序预测：判断两段句子是原来的顺序还是被交换过；通常与掩码语言模型同时训练。",
    ),
    "replaced_token": (
        "Replaced-token detection: a small generator fills hidden places, and the model says of every token whether it is the"
        " text's own. The better the generator, the harder the detection, so the sum need not fall.",
        "替换词检测：小生成器填补被遮的位置，模型判断每个词元是否为原文。生成器越好，检测越难，因此总损失不一定下降。",
    ),
    "permutation_lm": (
        "Permutation language modelling: tokens are predicted in a random order, each from those before it in that order.",
        "排列语言模型：按随机顺序预测词元，每个词元由该顺序中在它之前的词元预测。",
    ),
    "span_corruption": (
        "Span corruption: spans are cut out of the text the encoder reads, and the decoder writes them.",
        "片段破坏：从编码器读入的文本中挖去若干片段，由解码器写出。",
    ),
    "ul2": (
        "A mixture of denoisers: short spans, long spans, or the end of a row are cut out, and the decoder writes them.",
        "去噪混合：挖去短片段、长片段或行尾，由解码器写出。",
    ),
    "denoising": (
        "Denoising: sentences are shuffled and spans hidden, and the decoder writes the text as it was. Most of it can be"
        " copied; the baselines do not know that.",
        "去噪：打乱句子并遮住片段，由解码器还原全文。大部分内容可以照抄，而基线并不知道这一点。",
    ),
    "contrastive": (
        "Contrastive sentence vectors: two views of a sentence shall be closer than those of other sentences.",
        "对比学习句向量：同一句子的两个视图应比其他句子的更接近。",
    ),
    "distillation": (
        "Distillation: a student learns what a frozen teacher makes of the same rows.",
        "蒸馏：学生模型学习冻结的教师模型对同样文本的输出。",
    ),
    "mixture": (
        "Several objectives in one run, each with a share of the rows.",
        "一次训练中包含多个目标，各占一部分行。",
    ),
    "samples_masked": (
        "For each text, the model's first guesses for [MASK] and how sure it is of each. The texts are from the validation"
        " split. Before training all guesses are chance.",
        "对每段文本，列出模型对 [MASK] 的前几个猜测及其把握。文本取自验证集。训练之前的猜测全凭运气。",
    ),
    "samples_causal": (
        "How the model goes on from each text. The texts are from the validation split. Small models write fluent pieces long"
        " before they make sense.",
        "模型对每段文本的续写。文本取自验证集。小模型往往先学会通顺，后学会讲道理。",
    ),
    "corpus": (
        "What was kept after cleaning, by split. Each document belongs to one split, chosen by a hash of its text, so that it"
        " stays there when text is added.",
        "清洗后保留的文本，按划分列出。每篇文档依其文本的哈希值归入一个划分，增加新文本时不会变动。",
    ),
    "tokenizer": (
        "A tokenizer cuts text into the {vocab_size} units the model knows ({algorithm}). More bytes per token means that"
        " a row holds more text; many unknown tokens mean that the model cannot see parts of it.",
        "分词器把文本切成模型认识的 {vocab_size} 个单元（{algorithm}）。每词元字节数越多，一行容纳的文本越多；"
        "未知词元多，说明有些内容模型看不到。",
    ),
    "training": (
        "The learning rate says how far each step moves the weights: it warms up, then falls. Throughput should be level; dips"
        " are other work on the machine.",
        "学习率决定每一步把权重移动多远：先升温，再下降。吞吐量应当平稳；下凹说明机器上有其他任务。",
    ),
    "reproduce": (
        "The same recipe gives the same tokenizer, tokens, weights and losses bit for bit on the same machine, torch build and"
        " number of threads.",
        "在同一机器、同一 torch 版本和线程数下，同一配方会逐位得到相同的分词器、词元、权重和损失。",
    ),
}

KNOWS: Final[dict[str, tuple[str, str]]] = {
    "uniform": ("nothing", "一无所知"),
    "unigram": ("how often each token occurs", "每个词元的频率"),
    "bigram": ("also the token to the left", "还知道左边的词元"),
    "masked_lm": ("the row on both sides, less what is hidden", "左右两侧未被遮住的文本"),
    "causal_lm": ("the row to the left", "左侧的全部文本"),
}
