"""Our quantizer beside `multi_quantization` and FAISS, all in one run: `python -m benchmarks.quantizer`.

`__main__` parses, `run` starts one process for each figure (`one`) and `report` shows what came back.
"""
