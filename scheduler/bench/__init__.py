"""`jouleway bench`: any OpenAI server under load, its latencies, goodput and joules."""
