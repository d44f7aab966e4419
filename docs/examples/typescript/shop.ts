// An application of driftline: sends an item and an event, reads its own write, asks for a list, and follows.
//
// npm start -- USER KAFKA SERVICE PROTO     # PROTO: folder serving/proto of driftline

import { randomUUID } from 'node:crypto'
import * as grpc from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import { compatibilityPartitioner, Producer, stringSerializers } from '@platformatic/kafka'

const [userId = '', bootstrap = '', address = '', protos = ''] = process.argv.slice(2)

// What is read of the answers; numbers of 64 bits come as strings.
interface State { user_state: { counters: { events: string }, history: { item_ids: string[] } } }
interface Slate { slate: { item_ids: string[], item_reasons: { reasons: string[] }[] } }

const producer = new Producer({
  clientId: 'shop',
  bootstrapBrokers: [bootstrap],
  serializers: stringSerializers,
  partitioner: compatibilityPartitioner // murmur2 as in Java: the user's own partition
})

/** Offset at which the broker has the record; the key decides on the partition. */
async function send(topic: string, key: string, record: object): Promise<bigint> {
  const { offsets } = await producer.send({ messages: [{ topic, key, value: JSON.stringify(record) }], acks: -1 })
  return offsets![0]!.offset
}

/** The user buys an item; with an id of its own, an event that is sent twice counts once. */
function took(itemId: string): Promise<bigint> {
  const event = { user_id: userId, item_id: itemId, action: 'purchase', value: 1 }
  return send('interactions', userId, { ...event, timestamp_ms: Date.now(), event_id: randomUUID() })
}

// 1. An item of the catalogue, and an event that names it.
await send('items', 'lamp-7', { item_id: 'lamp-7', title: 'Reading lamp', categories: ['lamps'], price: 24.5 })
const offset = await took('lamp-7')
console.log(`sent: offset ${offset}`)

// 2. The user's state with that event in it: the stream's first message waits until it is applied.
const definition = loadSync('driftline/v1/recommendation.proto', {
  includeDirs: [protos], keepCase: true, longs: String, enums: String, defaults: true
})
const { driftline } = grpc.loadPackageDefinition(definition) as any
const retryPolicy = {
  maxAttempts: 3, initialBackoff: '0.1s', maxBackoff: '1s', backoffMultiplier: 3, retryableStatusCodes: ['UNAVAILABLE']
}
const name = [{ service: 'driftline.v1.RecommendationService' }]
const client = new driftline.v1.RecommendationService(address, grpc.credentials.createInsecure(), {
  'grpc.service_config': JSON.stringify({ methodConfig: [{ name, retryPolicy }] })
})
const asked = { user_id: userId, history_limit: 3, min_user_state_version: String(offset + 1n) }
const stream = client.WatchUserState(asked) as grpc.ClientReadableStream<State>
const changes: AsyncIterator<State> = stream[Symbol.asyncIterator]()
let state = (await changes.next()).value.user_state
console.log(`state: ${state.counters.events} events, newest ${state.history.item_ids[0]}`)

// 3. What to show next, and why; never from a state older than the purchase.
const options = { k: 5, list: 'SLATE_LIST_NOVEL', min_user_state_version: String(offset + 1n) }
const answer = await new Promise<Slate>((resolve, reject) =>
  client.Recommend(
    { user_id: userId, options }, { deadline: Date.now() + 2000 },
    (error: grpc.ServiceError | null, answer: Slate) => error ? reject(error) : resolve(answer)
  ))
answer.slate.item_ids.forEach((itemId, place) =>
  console.log(`list: ${itemId}, ${answer.slate.item_reasons[place]!.reasons.join(', ')}`))

// 4. Each further event is a message on the open stream.
await took(answer.slate.item_ids[0]!)
state = (await changes.next()).value.user_state
console.log(`change: ${state.counters.events} events, newest ${state.history.item_ids[0]}`)
stream.on('error', () => {}) // that it was cancelled
stream.cancel()
client.close()
await producer.close()
